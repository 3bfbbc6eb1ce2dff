// The table of ports: sortable by any column, with a filter. A pair of side and port keeps its row element.

import { ports } from "./metrics.js";
import { about, age, count, rate, state } from "./words.js";

const sockets = (name) => ({
  id: name,
  title: state(name),
  value: (row) => row.sockets[name] ?? 0,
  text: (row) => count(row.sockets[name] ?? 0),
});

/** A port as a number; `other` sorts last. */
const number = ({ port }) => (port === "other" ? 65_536 : Number(port));

const COLUMNS = [
  { id: "port", title: "Port", value: number, text: (row) => row.port, up: true, words: true },
  { id: "side", title: "Side", value: (row) => row.side, text: (row) => row.side, up: true, words: true },
  ...["close_wait", "last_ack", "fin_wait_1", "fin_wait_2", "closing", "time_wait"].map(sockets),
  {
    id: "stuck",
    title: "Stuck",
    value: (row) => row.stuck + row.possibly / 1e6,
    text: (row) => count(row.stuck) + (row.possibly > 0 ? ` (+${count(row.possibly)} possibly)` : ""),
  },
  { id: "oldest", title: "Oldest CLOSE-WAIT", value: (row) => row.oldest ?? 0, text: (row) => age(row.oldest) },
  { id: "median", title: "Median CLOSE-WAIT", value: (row) => row.median?.value ?? 0, text: (row) => about(row.median?.value) },
  { id: "closes", title: "Closes", value: (row) => row.rate ?? 0, text: (row) => rate(row.rate) },
];

/** Whether any number of a row is not zero. */
const isUsed = (row) =>
  row.stuck > 0 || row.possibly > 0 || row.risen > 0 || Object.values(row.sockets).some((sockets) => sockets > 0);

/** More than this are not shown: an agent may be told to name thousands. */
const MOST = 200;

/** What decides whether a row is among those, until somebody sorts: its stuck sockets, its sockets, its closes. */
const weights = (row) => [
  row.stuck,
  row.possibly,
  Object.values(row.sockets).reduce((sum, sockets) => sum + sockets, 0),
  row.risen,
];

/** The heavier row first. */
const byWeight = (a, b) => {
  const [left, right] = [weights(a), weights(b)];
  const unequal = left.findIndex((weight, at) => weight !== right[at]);
  return unequal < 0 ? 0 : right[unequal] - left[unequal];
};

export class PortTable {
  constructor(table, filter, empty) {
    this.body = table.tBodies[0];
    this.head = table.tHead.rows[0];
    this.filter = filter;
    this.empty = empty;
    /** Rows by side and port. */
    this.rows = new Map();
    /** Until somebody chooses: the stuck ones first, then by number, so that no row jumps about. */
    this.sorted = undefined;
    for (const column of COLUMNS) this.addHead(column);
    filter.addEventListener("input", () => this.over && this.show(this.over));
  }

  addHead(column) {
    const head = document.createElement("th");
    head.scope = "col";
    head.setAttribute("role", "columnheader");
    head.className = column.words ? "" : "number";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.title;
    button.addEventListener("click", () => this.sort(column));
    head.append(button);
    this.head.append(head);
  }

  /** A column by its own natural direction first, then the other way round. */
  sort(column) {
    const again = this.sorted?.column === column;
    this.sorted = { column, up: again ? !this.sorted.up : column.up === true };
    [...this.head.cells].forEach((head, at) => {
      head.removeAttribute("aria-sort");
      if (COLUMNS[at] === column) head.setAttribute("aria-sort", this.sorted.up ? "ascending" : "descending");
    });
    if (this.over) this.show(this.over);
  }

  order(a, b) {
    const usual = b.stuck - a.stuck || number(a) - number(b) || (a.key < b.key ? -1 : 1);
    if (!this.sorted) return usual;
    const { column, up } = this.sorted;
    const [left, right] = [column.value(a), column.value(b)];
    if (left === right) return usual;
    return left < right === up ? -1 : 1;
  }

  show(over) {
    this.over = over;
    const wanted = this.filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const all = ports(over);
    const matching = all.filter(({ key }) => wanted.every((word) => key.includes(word)));
    // What is asked for by name is shown with its zeros.
    const fitting = wanted.length > 0 ? matching : matching.filter(isUsed);
    const most = !this.sorted && fitting.length > MOST ? fitting.sort(byWeight).slice(0, MOST) : fitting;
    const shown = most.sort((a, b) => this.order(a, b)).slice(0, MOST);
    const gone = new Set(this.rows.keys());
    shown.forEach((row, at) => {
      gone.delete(row.key);
      const line = this.line(row);
      if (this.body.rows[at] !== line) this.body.insertBefore(line, this.body.rows[at] ?? null);
    });
    for (const key of gone) {
      this.rows.get(key).remove();
      this.rows.delete(key);
    }
    this.remark(all.length, matching.length, fitting.length);
  }

  remark(all, matching, fitting) {
    let words = "";
    const unused = matching - fitting;
    if (all === 0) words = "No connection has closed since the agent started.";
    else if (matching === 0) words = "No port matches the filter.";
    else if (fitting > MOST) words = `${count(fitting - MOST)} more ports: use the filter above.`;
    else if (unused > 0) words = `Not shown: ${count(unused)} with no socket and no close in this time. The filter finds them.`;
    this.empty.hidden = words === "";
    if (this.empty.textContent !== words) this.empty.textContent = words;
  }

  /** The element of a row, updated. */
  line(row) {
    let line = this.rows.get(row.key);
    if (!line) {
      line = document.createElement("tr");
      line.setAttribute("role", "row");
      line.dataset.pair = row.key;
      line.append(...COLUMNS.map(cell));
      this.rows.set(row.key, line);
    }
    COLUMNS.forEach((column, at) => {
      const text = column.text(row);
      const cell = line.cells[at];
      if (cell.textContent !== text) cell.textContent = text;
      if (!column.words) cell.classList.toggle("zero", !column.value(row));
    });
    return line;
  }
}

function cell(column) {
  const head = column.id === "port";
  const cell = document.createElement(head ? "th" : "td");
  // On a phone the style displays rows as cards; for a screen reader they must stay a table.
  cell.setAttribute("role", head ? "rowheader" : "cell");
  if (head) cell.scope = "row";
  cell.className = column.words ? column.id : "number";
  cell.dataset.label = column.title;
  cell.dataset.column = column.id;
  return cell;
}
