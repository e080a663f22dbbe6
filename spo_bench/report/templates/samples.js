// The list of samples: chosen by contrast, filtered, sorted, shown page by page.
const samplesSection = document.getElementById("samples");
if (samplesSection) (async () => {
  const at = id => document.getElementById(id), PAGE = 50, FIELDS = ["model", "task", "method", "variant", "seed"];
  const list = at("sample-list"), status = at("sample-status"), parts = await unpack("catalogue"), known = new Map();
  const selects = Object.fromEntries(FIELDS.map(field => [field, at(`pick-${field}`)]));
  let items = [], shown = [], page = 0, wanted = 0;

  for (const field of FIELDS) {
    const values = [...new Set(parts.map(part => String(part[field])))], select = selects[field];
    select.append(new Option(`all (${values.length})`, ""), ...values.map(value => new Option(value, value)));
    select.value = String(parts[0][field]);
    select.parentNode.hidden = values.length < 2;
    select.addEventListener("change", choose);
  }
  for (const id of ["pick-outcome", "pick-verdict", "pick-order"]) at(id).addEventListener("change", () => filter());
  for (const id of ["show-key", "show-words"]) at(id).addEventListener("change", repaint);
  let typing = 0;
  at("sample-search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(filter, 150); });
  at("page-before").addEventListener("click", () => turn(page - 1));
  at("page-after").addEventListener("click", () => turn(page + 1));

  // Unpack what the choice needs, once.
  const block = id => { if (!known.has(id)) known.set(id, unpack(id)); return known.get(id); };
  const load = async part => {
    const [columns, book] = await Promise.all([block(part.block), block(part.prompts)]);
    return columns.at.map((place, i) => ({
      part, book, i, at: place, sides: columns.sides, key: columns.key.map(side => side[i]), gain: columns.gain[i],
      name: `${part.id}/${book.id[place]}`, hash: `#sample=${encodeURIComponent(part.id)}/${encodeURIComponent(book.id[place])}`,
    }));
  };
  const chosenParts = () => parts.filter(part => FIELDS.every(field => ["", String(part[field])].includes(selects[field].value)));

  async function choose() {
    const turnNumber = ++wanted, some = chosenParts();
    for (const field of FIELDS) for (const option of selects[field].options) {
      const fits = part => FIELDS.every(other => ["", String(part[other])].includes(other === field ? option.value : selects[other].value));
      option.disabled = option.value !== "" && !parts.some(fits);
    }
    status.textContent = "Unpacking …";
    const found = await Promise.all(some.map(load));
    if (turnNumber !== wanted) return; // another choice was made meanwhile
    items = found.flat();
    const total = some.reduce((sum, part) => sum + part.total, 0);
    at("sample-scope").textContent = some.length === 1
      ? `${some[0].names[1]} against ${some[0].names[0]}, ${some[0].task}, seed ${some[0].seed}${some[0].control ? " (a control, not SPO itself)" : ""}`
      : `${some.length} contrasts and seeds`;
    if (items.length < total) at("sample-scope").textContent += `; ${items.length.toLocaleString("en")} of ${total.toLocaleString("en")} samples, evenly spaced from largest loss to largest gain`;
    offerCounts();
    filter();
  }

  // The filters name how many samples of the choice they leave.
  function offerCounts() {
    const outcomes = {}, verdicts = new Map();
    for (const item of items) {
      outcomes[outcomeOf(item.gain)] = (outcomes[outcomeOf(item.gain)] || 0) + 1;
      for (const [opponent, column] of Object.entries(item.sides[1].verdicts)) {
        for (const kind of kinds(column[item.i])) {
          if (!verdicts.has(opponent)) verdicts.set(opponent, {});
          verdicts.get(opponent)[kind] = (verdicts.get(opponent)[kind] || 0) + 1;
        }
      }
    }
    const titles = { gain: "gains", loss: "losses", same: "same", none: "not comparable" }, one = { gain: "gain", loss: "loss" };
    const counted = Object.keys(titles).filter(kind => kind !== "none" || outcomes[kind]);
    at("sample-scope").textContent += `: ${counted.map(kind => `${(outcomes[kind] || 0).toLocaleString("en")} ${(outcomes[kind] === 1 && one[kind]) || titles[kind]}`).join(", ")}`;
    refill(at("pick-outcome"), [new Option(`any (${items.length})`, ""), ...Object.keys(titles).map(kind => new Option(`${titles[kind]} (${outcomes[kind] || 0})`, kind))]);
    const groups = [...verdicts].map(([opponent, counts]) => {
      const group = make("optgroup");
      group.label = `against ${OPPONENTS[opponent] || opponent}`;
      group.append(...["win", "tie", "loss", "invalid", "orders disagree"].filter(kind => counts[kind]).map(kind => new Option(`${kind} (${counts[kind]})`, `${opponent}:${kind}`)));
      return group;
    });
    refill(at("pick-verdict"), [new Option("any", ""), ...groups]);
    at("pick-verdict").parentNode.hidden = !groups.length;
  }
  const kinds = verdict => verdict ? [OUTCOMES[verdict[0]] || "invalid", ...(disagree(verdict) ? ["orders disagree"] : [])] : [];
  const refill = (select, options) => {
    const before = select.value;
    select.replaceChildren(...options);
    select.value = before;
    if (select.selectedIndex < 0) select.value = "";
  };

  function filter(then = 0) {
    const outcome = at("pick-outcome").value, [opponent, kind] = at("pick-verdict").value.split(":"), order = at("pick-order").value;
    const words = at("sample-search").value.toLowerCase();
    shown = items.filter(item => (!outcome || outcomeOf(item.gain) === outcome)
      && (!kind || kinds((item.sides[1].verdicts[opponent] || [])[item.i]).includes(kind))
      && (!words || [item.book.prompt.text[item.at], ...item.sides.map(side => side.answer.text[item.i])].some(text => text.toLowerCase().includes(words))));
    const rank = { "": item => -Math.abs(item.gain), gain: item => -item.gain, loss: item => item.gain }[order];
    if (rank) shown.sort((a, b) => (a.gain === null) - (b.gain === null) || rank(a) - rank(b));
    turn(typeof then === "number" ? then : 0);
  }

  function turn(to) {
    const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
    page = Math.min(Math.max(0, to), last);
    const several = chosenParts().length > 1;
    list.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(item => row(item, several)));
    at("page-before").disabled = page === 0;
    at("page-after").disabled = page === last;
    const [from, till] = [page * PAGE + 1, Math.min(shown.length, (page + 1) * PAGE)];
    status.textContent = shown.length ? `${from}–${till} of ${shown.length.toLocaleString("en")} samples` : "No sample fits.";
  }

  function row(item, several) {
    const { part, book, gain } = item, line = make("li", "sample"), button = make("button", "line"), side = make("span", "at-end");
    line.dataset.sample = item.name;
    line.item = item;
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.append(make("span", "say", book.prompt.text[item.at].slice(0, 300)));
    if (several) side.append(make("span", "tag from", [part.model, part.task, part.names[1], `seed ${part.seed}`].filter((_, k) => k > 1 || !selects[FIELDS[k]].parentNode.hidden).join(" · ")));
    const before = item.sides[0].metrics[part.headline], after = item.sides[1].metrics[part.headline], metric = part.metrics[part.headline];
    const delta = gain === null ? "not comparable" : `Δ ${metric[0]} ${shownNumber(after[item.i] - before[item.i], item, part.headline, true)}`;
    side.append(make("span", `tag delta ${outcomeOf(gain)}`, delta));
    button.append(side);
    button.addEventListener("click", () => toggle(line));
    line.append(button);
    return line;
  }
  const view = () => ({ key: at("show-key").checked, words: at("show-words").checked });
  function toggle(line, open = line.children.length === 1) {
    line.firstChild.setAttribute("aria-expanded", String(open));
    if (open === (line.children.length === 1)) open ? line.append(sampleDetail(line.item, view())) : line.lastChild.remove();
    history.replaceState(null, "", open ? line.item.hash : location.href.split("#")[0] + "#answers");
  }
  function repaint() {
    for (const line of list.children) if (line.children.length > 1) line.lastChild.replaceWith(sampleDetail(line.item, view()));
  }

  // A link to a sample: #sample=CELL/PROMPT.
  async function follow() {
    const link = /^#sample=([^/]+)\/(.+)$/.exec(location.hash);
    if (!link) return false;
    const [cell, prompt] = link.slice(1).map(decoded), part = parts.find(one => one.id === cell);
    if (part) {
      for (const field of FIELDS) selects[field].value = String(part[field]);
      for (const id of ["pick-outcome", "pick-verdict", "sample-search"]) at(id).value = "";
      await choose();
      const place = shown.findIndex(item => item.name === `${cell}/${prompt}`);
      if (place >= 0) {
        turn(Math.floor(place / PAGE));
        const line = list.children[place % PAGE];
        toggle(line, true);
        line.firstChild.focus({ preventScroll: true });
        line.scrollIntoView({ block: "start", behavior: "instant" });
        return true;
      }
    }
    samplesSection.scrollIntoView();
    if (!part) await choose();
    status.textContent = `The sample of this link is not in this page: ${prompt}. ${status.textContent}`;
    return true;
  }
  function decoded(text) { try { return decodeURIComponent(text); } catch { return text; } }
  addEventListener("hashchange", follow);

  // Keys: j and k or arrows move, Enter opens, Esc closes, / searches.
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = document.activeElement, line = here.closest("li.sample"), writing = here.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (here === at("sample-search")) here.blur();
      else if (line && line.children.length > 1) { toggle(line, false); line.firstChild.focus(); }
      return;
    }
    if (writing) return;
    if (event.key === "/") { event.preventDefault(); at("sample-search").focus(); return; }
    const step = { j: 1, k: -1, ...(line ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
    if (!step) return;
    event.preventDefault();
    const rows = [...list.children], to = line ? rows.indexOf(line) + step : 0;
    if (to >= rows.length && !at("page-after").disabled) { turn(page + 1); list.firstChild.firstChild.focus(); }
    else if (to < 0 && page > 0) { turn(page - 1); list.lastChild.firstChild.focus(); }
    else if (rows[to]) rows[to].firstChild.focus();
  });

  if (!await follow()) await choose();
})().finally(() => setTimeout(loadPictures));
else addEventListener("load", loadPictures);
