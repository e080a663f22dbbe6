"use strict";
const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
};

// Tables: sort by any column, find rows in long ones.
for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0], asWritten = [...body.rows];
  for (const head of table.querySelectorAll("thead tr:last-child th")) {
    head.tabIndex = 0;
    head.title = "Sort by this column";
    const sort = () => {
      const was = head.getAttribute("aria-sort");
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      const to = was === "descending" ? "ascending" : was === "ascending" ? "" : "descending";
      if (to) head.setAttribute("aria-sort", to);
      table.classList.toggle("loose", to !== ""); // names that stand once for a block are shown in every row
      body.append(...(to ? sorted(asWritten, head.cellIndex, to === "ascending") : asWritten));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  }
  if (asWritten.length > 15) findIn(table, asWritten);
  if (asWritten.length > 30) table.closest(".scroll").classList.add("long");

  function sorted(rows, column, up) {
    const key = row => row.cells[column].dataset.v === undefined ? null : Number(row.cells[column].dataset.v);
    const text = row => row.cells[column].textContent.trim();
    return [...rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null && y === null) return (up ? 1 : -1) * text(a).localeCompare(text(b), undefined, { numeric: true });
      if (x === null || y === null) return x === null ? 1 : -1;
      return up ? x - y : y - x;
    });
  }
  function findIn(table, rows) {
    const input = make("input"), count = make("span", "count"), tools = make("div", "tools");
    input.type = "search";
    input.placeholder = `Find in ${rows.length} rows`;
    input.setAttribute("aria-label", input.placeholder);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
      }
      const left = rows.filter(row => !row.hidden).length;
      table.classList.toggle("found", words.length > 0);
      count.textContent = words.length ? `${left} of ${rows.length}` : "";
    });
    tools.append(input, count);
    table.closest(".scroll").before(tools);
  }
}
for (const frame of document.querySelectorAll(".scroll")) {
  const look = () => { if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0; else frame.removeAttribute("tabindex"); };
  new ResizeObserver(look).observe(frame);
}

// Pictures wait until the page and its samples are there, but not until somebody scrolls: what was never seen would be missing
// on paper.
const loadPictures = () => { for (const image of document.images) image.loading = "eager"; };

// Copying: pages opened from a file may not use the clipboard, so a selection is the way that always works.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try { await navigator.clipboard.writeText(source.textContent); } catch {
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
