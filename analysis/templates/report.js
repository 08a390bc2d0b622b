"use strict";
// Sort a table by a column: numbers by their value, texts by their letters, what is missing last.
function key(cell) {
  const value = cell.dataset.value;
  if (value === undefined) return cell.textContent === "–" ? null : cell.textContent;
  return value === "" || isNaN(value) ? value : Number(value);
}
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}
function sort(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = Array.from(body.rows, (row) => [key(row.cells[column]), row]);
  rows.sort((a, b) => (down && a[0] !== null && b[0] !== null ? -1 : 1) * compare(a[0], b[0]));
  body.append(...rows.map((pair) => pair[1]));
}
for (const header of document.querySelectorAll("th")) header.firstChild.addEventListener("click", () => sort(header));

// Values under the pointer: the <title> of a mark, shown at once.
const tip = document.getElementById("tip");
for (const mark of document.querySelectorAll("g.hover")) {
  const title = mark.querySelector("title");
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
  mark.addEventListener("pointermove", (event) => {
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 16 + "px";
  });
  mark.addEventListener("pointerleave", () => { tip.hidden = true; });
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", () => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(button.dataset.of));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl-C";
  });
}
for (const details of document.querySelectorAll("details")) {
  addEventListener("beforeprint", () => { details.open = true; });
}
