"""docs/methods.md says what the declarations say, and its examples work; so does the catalogue of methods and additions."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from spo_bench.cli.catalogue import methods_app
from spo_bench.errors import InputError
from spo_bench.matrix.axes import AXES, check_point
from spo_bench.matrix.load import load_spec
from spo_bench.matrix.spec import Spec
from spo_bench.methods import addition_names, get_addition, get_method, method_names
from spo_bench.methods.table import clashes, markdown_table, reads, refused_additions, refused_by, spec_line
from spo_bench.spo.settings import Control, SpoSettings

DOC = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- methods: the output of `spo-bench methods list --markdown` -->\n", "<!-- end of methods -->"
BASE = "name: trial\nmodels: [embedded]\ntasks: [controlled_dialogue]\nmethods: [dpo]\n"


def text() -> str:
    return DOC.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(), re.MULTILINE | re.DOTALL)


def said(*words: str) -> str:
    done = CliRunner().invoke(methods_app, list(words), catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0
    return done.stdout


def test_the_tables_are_those_of_the_declarations():
    inside = text().partition(BEGIN)[2].partition(END)[0]
    remedy = f"put the output of `spo-bench methods list --markdown` between the two marks of {DOC.name}"
    assert inside == markdown_table() + "\n", remedy
    assert inside == said("list", "--markdown"), remedy


def test_every_row_of_the_tables_has_its_columns():
    """A pipe inside a cell is escaped, so the pipes that are not count the cells of a row, in every row as in its head."""
    widths: list[int] = []
    for line in markdown_table().splitlines():
        if not line.startswith("|"):
            widths = []
            continue
        widths.append(len(re.findall(r"(?<!\\)\|", line)))
        assert widths[-1] == widths[0]
    table = markdown_table()
    assert all(f"| `{name}` |" in table for name in method_names())
    assert all(f"| `+{name}` |" in table for name in addition_names())


def examples() -> list[str]:
    known = {*Spec.model_fields, "extends"}
    return [block for block in blocks("yaml") if block.partition(":")[0] in known]


def test_every_spec_of_the_document_loads(tmp_path):
    """On a base with one task and method; every axis is shown, and no combination of its points is refused."""
    (tmp_path / "base.yaml").write_text(BASE)
    shown = set()
    assert examples() == blocks("yaml")
    for number, block in enumerate(examples()):
        path = tmp_path / f"example{number}.yaml"
        path.write_text(f"extends: base.yaml\n{block}", encoding="utf-8")
        spec = load_spec(path)
        for point in spec.data_axes.points():
            check_point(point)
            shown |= point.axes().keys()
    assert shown == set(AXES)


def test_the_settings_of_spo_are_documented_with_their_defaults():
    section = text().partition("## SPO")[2].partition("## Data axes")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    computed = {"fractions": "k / (degrees - 1)", "control": "none"}
    for name, field in SpoSettings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert rows[name].strip("`") == computed.get(name, default), name
    assert set(Control.__args__) <= rows.keys()


def test_pair_loss_as_shown():
    """u_w = -40 + 42 = 2, u_l = -50 + 48 = -2. dpo at beta 0.1: z = 0.4, log(1 + exp(-0.4)) = 0.5130. ipo at beta 0.5 by means:
    (2/20 - (-2/10) - 1/(2 * 0.5))^2 = (0.3 - 1)^2 = 0.49.
    """
    (block,) = blocks("python")
    names: dict = {}
    exec(block, names)
    assert names["dpo"].tolist() == pytest.approx([math.log1p(math.exp(-0.4))])
    assert names["ipo"].tolist() == pytest.approx([0.49])
    assert "= 0.5130" in block
    assert f"{math.log1p(math.exp(-0.4)):.4f}" == "0.5130"


@pytest.mark.parametrize("name", [*method_names(), *(f"+{name}" for name in addition_names())])
def test_the_line_for_a_spec_gives_the_defaults(name: str):
    """What `show` prints as a spec's line loads, and means what the name alone means."""
    one = get_addition(name[1:]) if name[0] == "+" else get_method(name)
    line = spec_line(one)
    assert "\n" not in line
    short = f"dpo{name}" if name[0] == "+" else name
    written, plain = (load_spec({**yaml.safe_load(BASE), **entry}) for entry in (yaml.safe_load(line), {"methods": [short]}))
    assert written.methods == plain.methods
    assert line in said("show", name)


def test_methods_list_as_json_is_the_methods_alone():
    found = {record["name"]: record for record in json.loads(said("list", "--json"))}
    assert list(found) == method_names()
    assert len(found) >= 28
    needs = ("needs_reference", "needs_kl", "needs_scores", "needs_collision", "running", "likelihood", "batch_coupled")
    assert all(isinstance(record[key], bool) for record in found.values() for key in needs)
    assert [name for name, record in found.items() if record["running"]] == ["alpha_dpo", "bco", "beta_dpo"]
    assert found["wpo"]["needs_collision"]
    assert found["margin_dpo"]["needs_scores"]
    assert found["ipo"]["defaults"]["reduction"]["rule"] == "one of mean, sum"
    assert found["lrml"]["defaults"]["tau"]["rule"] == "a finite number above 0 and at most 1"
    assert json.loads(said("show", "ipo", "--json")) == found["ipo"]


def test_methods_list_has_the_additions():
    listed = said("list")
    assert all(f"+{name}" in listed for name in addition_names())
    assert "eta=0.2" in listed
    assert said() == listed


def test_show_says_what_a_method_needs():
    assert reads(get_method("kto")) == ["the reference", "mismatched pairs (a prompt with another's answer)"]
    assert reads(get_method("simpo")) == []
    shown = said("show", "wpo")
    assert "per-token collisions" in shown
    assert "above 0" in shown
    assert "methods: [{name: wpo, beta: 0.01}]" in shown
    assert "without +ref_sync: simpo reads no reference" in said("show", "simpo")


def test_show_says_what_an_addition_goes_with():
    """The likelihood term is in cpo, orpo, rpo and slic already; without a reference are cpo, orpo, simpo and slic."""
    assert list(refused_by(get_addition("sft"))) == ["cpo", "orpo", "rpo", "slic"]
    assert list(refused_by(get_addition("ref_sync"))) == ["cpo", "orpo", "simpo", "slic"]
    assert list(refused_additions(get_method("rpo"))) == ["sft"]
    # What one side refuses holds for both.
    assert list(clashes(get_addition("ref_sync"))) == ["exploration"]
    assert list(clashes(get_addition("exploration"))) == ["ref_sync"]
    assert clashes(get_addition("sft")) == {}
    assert said("show", "sft") == said("show", "+sft")
    for part in ("refused by: cpo, orpo, rpo, slic", "eta = 0.2", "a finite number above 0", "arXiv 2405.16436", "note: "):
        assert part in said("show", "sft")
    record = json.loads(said("show", "+sft", "--json"))
    assert record["name"] == "+sft"
    assert record["defaults"]["eta"]["rule"] == "a finite number above 0"


@pytest.mark.parametrize(
    ("name", "near"), [("simpoo", "simpo"), ("exploraton", "+exploration"), ("+reff_sync", "+ref_sync"), ("dpo_nrm", "dpo_norm")]
)
def test_a_wrong_name_is_answered_with_the_nearest(name: str, near: str):
    with pytest.raises(InputError, match=f"did you mean '{re.escape(near)}'"):
        said("show", name)


def test_one_form_at_a_time():
    with pytest.raises(InputError, match="leave one out"):
        said("list", "--json", "--markdown")
