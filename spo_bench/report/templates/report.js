"use strict";
for (const head of document.querySelectorAll("thead tr:last-child th")) {
  head.tabIndex = 0;
  const sort = () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = row => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
    };
    const text = row => row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null && y === null) return (down ? 1 : -1) * -text(b).localeCompare(text(a));
      if (x === null || y === null) return x === null ? 1 : -1;
      return down ? x - y : y - x;
    });
    for (const row of rows) { row.classList.remove("first"); body.append(row); }
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
}
const choice = document.getElementById("contrast");
if (choice) {
  const show = () => {
    for (const gallery of document.querySelectorAll(".gallery")) gallery.hidden = gallery.id !== choice.value;
  };
  choice.addEventListener("change", show);
  show();
  document.getElementById("unfold").addEventListener("click", () => {
    const shown = [...document.querySelectorAll("#" + choice.value + " details")];
    const open = shown.some(one => !one.open);
    for (const one of shown) one.open = open;
  });
}
