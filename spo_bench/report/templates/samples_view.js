// One sample, from columns to elements. All that a model wrote becomes text nodes; nothing here parses HTML.
const unpack = async id => {
  const letters = atob(document.getElementById(id).textContent), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};
const OPPONENTS = { baseline: "own baseline", sft: "SFT policy", chosen: "chosen answer" };
const OUTCOMES = { a: "win", tie: "tie", b: "loss", invalid: "invalid" };
const outcomeOf = gain => gain === null ? "none" : gain > 0 ? "gain" : gain < 0 ? "loss" : "same";
const disagree = verdict => new Set(verdict[2].map(order => order.verdict).filter(Boolean)).size > 1;

// Numbers of one metric have the same digits; a difference that these would hide is shown to its first.
const digitsFor = (values, share = false) => {
  const known = values.filter(value => value !== null && value !== undefined);
  const size = known.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return known.every(Number.isInteger) ? 0 : share || size >= 100 ? 1 : size < 0.1 ? 3 : 2;
};
const digitsOf = ({ part, sides }, name) => {
  const [, share, scale] = part.metrics[name];
  sides.digits ??= {};
  return sides.digits[name] ??= digitsFor(sides.flatMap(side => side.metrics[name] || []).map(value => value === null ? null : value * scale), share);
};
const decimal = (x, digits, sign = false) => {
  const text = x !== 0 && Number(x.toFixed(digits)) === 0 ? String(Number(x.toPrecision(1))) : x.toFixed(digits);
  return (sign && x > 0 ? "+" : "") + text.replaceAll("-", "−");
};
const shownNumber = (value, item, name, sign = false) =>
  value === null || value === undefined ? "–" : decimal(value * item.part.metrics[name][2], digitsOf(item, name), sign);

// Ranges of words that one text has and the other has not, by their longest common subsequence; null where that is too long to find.
const differences = (left, right) => {
  const [a, b] = [left, right].map(text => [...text.matchAll(/\S+/g)].map(found => [found.index, found.index + found[0].length, found[0]]));
  if (a.length * b.length > 4e6) return null;
  const width = b.length + 1, common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) {
    common[i * width + j] = a[i][2] === b[j][2]
      ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
  }
  const only = [[], []];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i][2] === b[j][2]) { i++; j++; }
    else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) only[0].push(a[i++]);
    else only[1].push(b[j++]);
  }
  return only;
};

// Write a text into an element, with key content shaded by its degree and differing words marked.
const paint = (element, text, key, degrees, differing) => {
  const spans = [];
  for (let i = 0; i < key.length; i += 3) spans.push([key[i], Math.min(key[i + 1], text.length), key[i + 2]]);
  const cuts = new Set([0, text.length]);
  for (const [start, end] of [...spans, ...differing]) if (start < text.length) { cuts.add(start); cuts.add(end); }
  const places = [...cuts].sort((x, y) => x - y);
  for (let i = 0; i + 1 < places.length; i++) {
    const [start, end] = [places[i], places[i + 1]];
    const span = spans.find(one => one[0] <= start && start < one[1]), other = differing.some(one => one[0] <= start && start < one[1]);
    if (!span && !other) { element.append(text.slice(start, end)); continue; }
    const mark = make(other ? "ins" : "mark", span ? "key" : "", text.slice(start, end));
    if (span) {
      mark.style.setProperty("--shade", `${shade(span[2], degrees)}%`);
      mark.title = `key content, gone at degree ${span[2]} of ${degrees - 1}`;
    }
    element.append(mark);
  }
};
const shade = (degree, degrees) => Math.round(46 - 34 * (degrees > 2 ? (degree - 1) / (degrees - 2) : 0));

const answer = (kind, title, facts, column, i, key, view, differing = []) => {
  const card = make("div", `side ${kind}`), text = make("p", "text");
  card.append(make("h4", "", title));
  if (facts) card.append(make("span", "tag", facts));
  paint(text, column.text[i], view.key ? key : [], view.degrees, differing);
  if (column.text[i] === "") text.append(make("i", "", "(empty)"));
  card.append(text);
  const more = column.more && column.more[i];
  if (more) card.append(make("p", "note", `Cut here: ${more.toLocaleString("en")} more characters are in samples.jsonl.`));
  return card;
};
const ended = (side, i) => {
  const words = { stop: "ended by itself", length: "cut off at the token limit" }[side.finish[i]] || side.finish[i];
  return [side.tokens[i] === null ? "" : `${side.tokens[i]} tokens`, words || ""].filter(Boolean).join(" · ");
};

const metricsTable = item => {
  const { part, sides, i } = item, table = make("table", "facts-table"), head = table.createTHead().insertRow(), body = table.createTBody();
  for (const title of ["", ...part.names, "Δ"]) head.append(make("th", title ? "num" : "", title));
  for (const [name, metric] of Object.entries(part.metrics)) {
    const values = sides.map(side => side.metrics[name] ? side.metrics[name][i] : null);
    if (values.every(value => value === null)) continue;
    const row = body.insertRow();
    row.append(make("td", "", metric[0]), ...values.map(value => make("td", "num", shownNumber(value, item, name))));
    row.append(make("td", "num", values.includes(null) ? "–" : shownNumber(values[1] - values[0], item, name, true)));
  }
  const frame = make("div", "scroll");
  frame.append(table);
  return frame;
};

const verdictLines = item => {
  const { part, sides, i } = item, list = make("div", "verdicts");
  [1, 0].forEach(s => Object.entries(sides[s].verdicts).forEach(([opponent, column]) => {
    const verdict = column[i];
    if (!verdict) return;
    const [outcome, score, orders, reason] = verdict, box = make("div", "judged"), line = make("p", "note");
    line.append(make("b", "", part.names[s]), ` against the ${OPPONENTS[opponent] || opponent}: `);
    line.append(make("span", `badge ${OUTCOMES[outcome] || ""}`, OUTCOMES[outcome] || outcome || "none"));
    if (score !== null && ![0, 0.5, 1].includes(score)) line.append(` score ${score.toFixed(2)}`);
    if (disagree(verdict)) line.append(" ", make("span", "badge", "orders disagree"));
    const numbers = orders.length === 1 && "a" in orders[0] ? orders[0] : null;
    if (numbers) {
      const both = [numbers.a, numbers.b], digits = digitsFor(both);
      line.append(` ${both.map(x => x === null || x === undefined ? "–" : decimal(x, digits)).join(" against ")}`);
    }
    if (reason) line.append(` – ${reason}`);
    box.append(line);
    if (!numbers) for (const order of orders) box.append(orderLine(order, part.names[s], OPPONENTS[opponent] || opponent));
    list.append(box);
  }));
  return list;
};
const orderLine = (order, own, other) => {
  const row = make("div", "order"), who = { a: own, b: other, tie: "a tie" };
  const p = order.p === undefined ? "" : `P(shown first is better) = ${order.p.toFixed(2)}`;
  const facts = [order.verdict ? `says ${who[order.verdict] || order.verdict}` : p ? "" : "no verdict", p, order.finish && `finish: ${order.finish}`, order.error];
  row.append(make("span", "tag", [`${who[order.first]} shown first`, ...facts].filter(Boolean).join(" · ")));
  if (order.reply) {
    const reply = make("pre", "reply", order.reply);
    if (order.more) reply.append(make("i", "", ` … (${order.more.toLocaleString("en")} more characters)`));
    row.append(reply);
  }
  return row;
};

// Everything about one sample. view: {key, words}: whether key content and differing words are marked.
const sampleDetail = (item, view) => {
  const { part, book, sides, at, i } = item, whole = make("div", "detail"), both = make("div", "sides"), given = make("div", "sides");
  const marked = { ...view, degrees: part.degrees }, heads = part.metrics[part.headline];
  const differing = view.words ? differences(sides[0].answer.text[i], sides[1].answer.text[i]) : [[], []];
  whole.append(answer("prompt", "Prompt", "", book.prompt, at, [], marked));
  sides.forEach((side, s) => {
    const value = heads && side.metrics[part.headline] ? `${heads[0]} ${shownNumber(side.metrics[part.headline][i], item, part.headline)}` : "";
    const facts = [value, ended(side, i)].filter(Boolean).join(" · ");
    both.append(answer(s ? "spo" : "base", part.names[s], facts, side.answer, i, side.key[i], marked, differing ? differing[s] : []));
  });
  whole.append(both);
  if (differing === null) whole.append(make("p", "note", "These answers are too long to compare word by word."));
  const data = [["chosen", "Chosen in the data", item.key[0]], ["rejected", "Rejected in the data", item.key[1]]].filter(([name]) => book[name].text[at] !== "");
  for (const [name, title, key] of data) given.append(answer("given", title, "", book[name], at, key, marked));
  if (data.length) whole.append(given);
  if (view.key) whole.append(legend(part));
  const numbers = make("div", "numbers");
  numbers.append(metricsTable(item), verdictLines(item));
  whole.append(numbers);
  const foot = make("p", "note foot"), link = make("a", "", "Link to this sample");
  link.href = item.hash;
  foot.append("Prompt ", make("code", "", book.id[at]), " of cell ", make("code", "", part.id), " · ", link);
  whole.append(foot);
  return whole;
};
const legend = part => {
  const line = make("p", "note legend");
  for (let degree = 1; degree < Math.min(part.degrees, 9); degree++) {
    const mark = make("mark", "key", `degree ${degree}`);
    mark.style.setProperty("--shade", `${shade(degree, part.degrees)}%`);
    line.append(mark, " ");
  }
  line.append(part.legend);
  return line;
};
