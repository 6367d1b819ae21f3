// The same as the graph, in rows: for who reads better in tables, and for screen readers.

import { html } from "/static/dom.js";
import { bytesPerSecond, count, perSecond } from "/static/format.js";
import { shownName } from "/static/detail.js";
import { link, name, stateChip } from "/static/parts.js";

const SERVICES = [
  ["Service", (node) => node.name, (node, go) => link(name(node.name, 48), () => go("node", node.id))],
  ["Namespace", (node) => node.namespace, (node) => name(node.namespace, 32)],
  ["Kind", (node) => node.kind, (node) => node.kind],
  ["Ready", (node) => (node.endpoints ? node.ready / node.endpoints : 2), (node) => html("span", { class: "state", "data-health": node.health }, node.kind === "service" ? `${node.ready} of ${node.endpoints}` : "\u2013")],
  ["In", (node) => node.in.opened, (node) => perSecond(node.in.opened)],
  ["Out", (node) => node.out.opened, (node) => perSecond(node.out.opened)],
  ["Bytes", (node) => volume(node.in) + volume(node.out), (node) => bytesPerSecond(volume(node.in) + volume(node.out))],
  ["Denied", (node) => node.in.denied, (node) => perSecond(node.in.denied)],
  ["Worst", (node) => node.worst, (node) => stateChip(node.worst)],
];
const EDGES = [
  ["From", (edge) => edge.source, (edge, go) => link(name(shownName(edge.source), 40), () => go("node", edge.source))],
  ["To", (edge) => edge.target, (edge, go) => link(name(shownName(edge.target), 40), () => go("node", edge.target))],
  ["State", (edge) => edge.state, (edge, go) => link(stateChip(edge.state), () => go("edge", edge.id), null)],
  ["New", (edge) => edge.rate?.opened ?? -1, (edge) => perSecond(edge.rate?.opened)],
  ["Open", (edge) => edge.open, (edge) => count(edge.open)],
  ["Bytes", (edge) => (edge.rate ? volume(edge.rate) : -1), (edge) => bytesPerSecond(edge.rate ? volume(edge.rate) : null)],
  ["Denied", (edge) => edge.rate?.denied ?? -1, (edge) => perSecond(edge.rate?.denied)],
  ["Failed", (edge) => edge.rate?.failed ?? -1, (edge) => perSecond(edge.rate?.failed)],
];
const volume = (rate) => rate.sent_bytes + rate.received_bytes;

export class Tables {
  constructor(place, go) {
    this.go = go;
    this.services = new Table("Services", SERVICES, go);
    this.edges = new Table("Connections", EDGES, go);
    place.append(this.services.root, this.edges.root);
  }

  update(view) {
    this.services.update(view.nodes);
    this.edges.update(view.edges);
  }
}

class Table {
  constructor(title, columns, go) {
    this.columns = columns;
    this.go = go;
    this.by = 0;
    this.down = false;
    this.rows = new Map();
    this.title = html("h2", {}, title);
    this.heads = columns.map(([text], place) => html("th", { scope: "col", "aria-sort": "none" },
      html("button", { type: "button", onclick: () => this.#sort(place) }, text)));
    this.body = html("tbody");
    this.root = html("section", { "aria-label": title }, this.title,
      html("div", { class: "scroll", role: "region", "aria-label": `${title}, table`, tabindex: "0" }, html("table", {}, html("thead", {}, html("tr", {}, this.heads)), this.body)));
    this.name = title;
  }

  update(items) {
    this.items = items;
    this.title.textContent = `${this.name} (${items.length})`;
    const key = this.columns[this.by][1];
    const sorted = [...items].sort((one, other) => compare(key(one), key(other)) * (this.down ? -1 : 1) || (one.id < other.id ? -1 : 1));
    this.heads.forEach((head, place) => head.setAttribute("aria-sort", place !== this.by ? "none" : this.down ? "descending" : "ascending"));
    const gone = new Set(this.rows.keys());
    sorted.forEach((item, place) => {
      gone.delete(item.id);
      let row = this.rows.get(item.id);
      const texts = JSON.stringify(this.columns.map(([, value]) => value(item)));
      if (!row || row.texts !== texts) {
        const made = html("tr", {}, this.columns.map(([, , cell]) => html("td", {}, cell(item, this.go))));
        // Whoever is on a button of the row stays on it.
        const held = row?.root.contains(document.activeElement) ? [...row.root.querySelectorAll("button")].indexOf(document.activeElement) : -1;
        if (row) row.root.replaceWith(made);
        if (held >= 0) made.querySelectorAll("button")[held]?.focus();
        row = { root: made, texts };
        this.rows.set(item.id, row);
      }
      if (this.body.children[place] !== row.root) this.body.insertBefore(row.root, this.body.children[place] ?? null);
    });
    for (const id of gone) {
      this.rows.get(id).root.remove();
      this.rows.delete(id);
    }
  }

  #sort(place) {
    this.down = this.by === place ? !this.down : place > 2;
    this.by = place;
    this.update(this.items);
  }
}

const compare = (one, other) => (typeof one === "number" ? one - other : String(one).localeCompare(String(other)));
