"""What ``spo-bench init`` writes."""

SPEC = """\
# A study: run it with  spo-bench run --matrix study.yaml --tasks tasks
extends: quick                      # every key that is not given here comes from there; see `spo-bench presets show quick`
name: study
tasks:
  - controlled_dialogue
  - {name: my_task, limit: {train: 200, eval: 64, heldout: 16, sft: 64}}
methods: [dpo, {name: ipo, beta: 0.2}]
seeds: [0]
"""

TASK = '''\
"""A task of your own: copy, rename, and check it with  spo-bench tasks validate tasks"""

from random import Random

from spo_bench.task import Row, Task


class MyTask(Task):
    name = "my_task"
    summary = "prefers the answer that names the colour asked for"
    controlled = True
    needs_data = False

    def load(self, split, limit, seed):
        draw = Random(f"{split} {seed}")
        rows = []
        for number in range(limit or 100):
            plant = draw.choice(["rose", "fern", "lily", "moss"])
            prompt = f"what is the colour of the {plant} ? ( {split} {number} )"
            rows.append(
                Row(
                    id=f"{split}-{number}",
                    prompt=({"role": "user", "content": prompt},),
                    chosen=f"the {plant} is green .",
                    rejected="" if split == "sft" else f"i like the {plant} .",
                    meta={"plant": plant},
                    number=number + 1,
                )
            )
        return rows

    def true_reward(self, row, answer):
        return float("green" in answer.lower())
'''

FILES = {"study.yaml": SPEC, "tasks/my_task.py": TASK}
