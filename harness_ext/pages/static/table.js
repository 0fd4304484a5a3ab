// Sorts, filters, searches and pages the tables of a page. Data are columns of JSON in the page;
// texts go in as text, never as HTML. `SaeTables[id]` steers a table from another script:
// .choose(key, value), .onChange(rows => ...).
(() => {
  "use strict";
  const MINUS = "\u2212";
  const el = (tag, props = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
      if (key === "class") node.className = value;
      else if (key in node) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const fixed = (value, digits) => {
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) !== 0 ? MINUS : "") + text;
  };
  const signed = (value, digits) => (Number(value.toFixed(digits)) > 0 ? "+" : "") + fixed(value, digits);
  const FORMATS = {
    text: (v) => String(v),
    number: (v, d) => (Number.isInteger(v) ? String(v).replace("-", MINUS) : fixed(v, d)),
    percent: (v, d) => fixed(100 * v, d) + "\u2009%",
    points: (v, d) => signed(100 * v, d),
    signed: (v, d) => signed(v, d),
    p: (v) => (v < 0.001 ? "<\u2009.001" : v.toFixed(3).replace(/^0/, "")),
  };
  const NUMBERS = new Set(["number", "percent", "signed", "points", "p", "interval", "pair"]);
  const format = (kind, value, digits) =>
    value === null || value === undefined ? "\u2013"
      : typeof value === "number" ? (FORMATS[kind] || FORMATS.number)(value, digits) : String(value);

  class Table {
    constructor(root) {
      this.root = root;
      const data = JSON.parse(root.querySelector("[data-table-data]").textContent);
      this.data = data;
      this.columns = data.columns;
      this.byKey = new Map(this.columns.map((c) => [c.key, c]));
      this.shown = this.columns.filter((c) => !c.hidden);
      this.searched = this.columns.filter((c) => c.search);
      this.sort = { key: data.sort, descending: data.descending };
      this.page = 0;
      this.size = data.pageSize;
      this.choices = {};
      this.words = [];
      this.listeners = [];
      this.head();
      this.controls();
      this.refresh();
    }
    value(column, row) {
      const value = column.values[row];
      return column.levels && value !== null ? column.levels[value] : value;
    }
    get(key, row) { return this.value(this.byKey.get(key), row); }
    kind(column, row) { return column.kindKey ? this.get(column.kindKey, row) : column.kind; }

    head() {
      const row = el("tr");
      for (const column of this.shown) {
        const button = el("button", { type: "button", title: column.help }, column.title);
        button.addEventListener("click", () => this.sortBy(column.key));
        const cell = el("th", { scope: "col" }, button);
        if (NUMBERS.has(column.kind)) cell.classList.add("num");
        column.cell = cell;
        row.append(cell);
      }
      this.root.querySelector("thead").append(row);
    }
    controls() {
      for (const select of this.root.querySelectorAll("select[data-filter]")) {
        const column = this.byKey.get(select.dataset.filter);
        const values = new Set();
        for (let i = 0; i < this.data.n; i += 1) {
          const value = this.value(column, i);
          for (const one of Array.isArray(value) ? value : [value]) {
            if (one !== null && one !== undefined && one !== "") values.add(String(one));
          }
        }
        const sorted = column.levels || [...values].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
        select.append(el("option", { value: "" }, this.data.allLabel));
        for (const value of sorted) select.append(el("option", { value }, value));
        if (values.has(column.choice)) { select.value = column.choice; this.choices[column.key] = column.choice; }
        select.addEventListener("change", () => this.choose(column.key, select.value));
      }
      const search = this.root.querySelector("[data-search]");
      if (search) {
        search.addEventListener("input", () => {
          this.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
          this.page = 0;
          this.refresh();
        });
      }
    }
    choose(key, value) {
      const select = this.root.querySelector(`select[data-filter="${key}"]`);
      if (select) select.value = value;
      if (value === "") delete this.choices[key]; else this.choices[key] = value;
      this.page = 0;
      this.refresh();
    }
    sortBy(key) {
      const numbers = NUMBERS.has(this.byKey.get(key).kind);
      const descending = this.sort.key === key ? !this.sort.descending : numbers && !["p", "number"].includes(this.byKey.get(key).kind);
      this.sort = { key, descending };
      this.page = 0;
      this.refresh();
    }
    onChange(listener) { this.listeners.push(listener); listener(this.rows); }

    matches(row) {
      for (const [key, choice] of Object.entries(this.choices)) {
        const value = this.get(key, row);
        if (!(Array.isArray(value) ? value.map(String).includes(choice) : String(value) === choice)) return false;
      }
      if (!this.words.length) return true;
      const text = this.searched.map((c) => this.value(c, row) ?? "").join(" ").toLowerCase();
      return this.words.every((word) => text.includes(word));
    }
    order(rows) {
      const column = this.byKey.get(this.sort.key);
      if (!column) return rows;
      const sign = this.sort.descending ? -1 : 1;
      const key = rows.map((row) => {
        const value = this.value(column, row);
        return Array.isArray(value) ? value.join(" ") : value;
      });
      const empty = (v) => v === null || v === undefined || v === "";
      const at = rows.map((_, i) => i).sort((i, j) => {
        const a = key[i], b = key[j];
        if (empty(a) || empty(b)) return empty(a) - empty(b) || i - j; // last, in both directions
        const by = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
        return sign * by || i - j;
      });
      return at.map((i) => rows[i]);
    }
    refresh() {
      const rows = [];
      for (let i = 0; i < this.data.n; i += 1) if (this.matches(i)) rows.push(i);
      this.rows = this.order(rows);
      this.draw();
      for (const listener of this.listeners) listener(this.rows);
    }
    draw() {
      const size = this.size || this.rows.length || 1;
      const pages = Math.max(1, Math.ceil(this.rows.length / size));
      this.page = Math.min(this.page, pages - 1);
      // A column that was filtered to one value says nothing more; a list still does.
      for (const column of this.shown) column.cell.hidden = this.fixed(column);
      const body = el("tbody");
      for (const row of this.rows.slice(this.page * size, (this.page + 1) * size)) body.append(this.row(row));
      if (!this.rows.length) body.append(el("tr", {}, el("td", { colSpan: this.shown.length, class: "none" }, "No row matches.")));
      this.root.querySelector("tbody").replaceWith(body);
      for (const column of this.shown) {
        const on = column.key === this.sort.key;
        column.cell.setAttribute("aria-sort", on ? (this.sort.descending ? "descending" : "ascending") : "none");
      }
      this.root.querySelector("[data-count]").textContent =
        `${this.rows.length.toLocaleString("en")} of ${this.data.n.toLocaleString("en")} rows`;
      this.drawPages(pages);
    }
    fixed(column) { return column.key in this.choices && column.kind !== "list" && column !== this.shown[0]; }
    drawPages(pages) {
      const nav = this.root.querySelector("[data-pages]");
      nav.replaceChildren();
      nav.hidden = this.rows.length <= Math.min(25, this.size || Infinity) && this.size !== 0;
      const go = (label, name, page) => {
        const button = el("button", { type: "button", disabled: page < 0 || page >= pages }, label);
        button.setAttribute("aria-label", name);
        button.addEventListener("click", () => {
          this.page = page;
          this.draw();
          const again = nav.querySelector(`[aria-label="${name}"]`);
          (again.disabled ? nav.querySelector("button:not([disabled])") : again)?.focus();
        });
        nav.append(button);
      };
      go("\u00ab", "First page", this.page > 0 ? 0 : -1);
      go("\u2039", "Previous page", this.page - 1);
      nav.append(el("span", {}, `page ${this.page + 1} of ${pages}`));
      go("\u203a", "Next page", this.page + 1);
      go("\u00bb", "Last page", this.page < pages - 1 ? pages - 1 : pages);
      const select = el("select");
      select.setAttribute("aria-label", "Rows a page");
      for (const n of [...new Set([25, 50, 100, 250, this.data.pageSize])].sort((a, b) => a - b)) {
        select.append(el("option", { value: n, selected: n === this.size }, `${n} a page`));
      }
      select.addEventListener("change", () => { this.size = Number(select.value); this.page = 0; this.draw(); });
      nav.append(select);
    }
    row(row) {
      const line = el("tr");
      if (this.data.rowClass) line.dataset.kind = this.get(this.data.rowClass, row) ?? "";
      this.shown.forEach((column, i) => { if (!this.fixed(column)) line.append(this.cell(column, row, i === 0)); });
      return line;
    }
    cell(column, row, first) {
      const value = this.value(column, row);
      const kind = this.kind(column, row);
      const cell = el(first ? "th" : "td", first ? { scope: "row" } : {});
      if (NUMBERS.has(column.kind)) cell.classList.add("num");
      if (value === null || value === undefined) cell.classList.add("empty");
      if (Array.isArray(value)) {
        for (const word of value) cell.append(el("span", { class: "tag", "data-tag": word }, word), " ");
      } else if (column.kind === "interval" && value !== null) {
        const [lo, hi] = column.extra.map((key) => this.get(key, row));
        cell.append(el("b", {}, format(kind, value, column.digits)));
        if (lo !== null && hi !== null) {
          cell.append(el("span", { class: "ends" }, ` [${format(kind, lo, column.digits)}, ${format(kind, hi, column.digits)}]`));
        }
      } else if (column.kind === "pair") {
        const from = this.get(column.extra[0], row);
        if (from !== null) cell.append(el("span", { class: "ends" }, format(kind, from, column.digits) + " \u2192 "));
        cell.append(format(kind, value, column.digits));
      } else {
        const text = format(kind, value, column.digits);
        const href = column.href ? this.get(column.href, row) : null;
        cell.append(href ? el("a", { href }, text) : text);
      }
      return cell;
    }
  }

  window.SaeTables = {};
  for (const root of document.querySelectorAll("[data-table]")) window.SaeTables[root.id] = new Table(root);
  window.Sae = { format, el }; // for the other scripts of a page
})();
