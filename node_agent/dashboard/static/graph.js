// The picture: a card for each node, a curve for each edge, kept from one answer to the next.

import { setAttribute, setText, short, shown, svg } from "/static/dom.js";
import { perSecond } from "/static/format.js";
import { HEIGHT, WIDTH, extend, layout } from "/static/layout.js";
import { routesOf } from "/static/routes.js";
import { Viewport } from "/static/viewport.js";
import { aboutOf, labelOf, pace, spoken } from "/static/words.js";

const LABELS_UP_TO = 36;
const FLOWS_UP_TO = 140;
const FAR = 0.62;
const TINY = 0.34;
const NEW_SHARE = 0.3;
const LOCK = "M-3.6 -.6v-2a3.6 3.6 0 0 1 7.2 0v2M-5 -.6h10v6.6h-10z";
const OPEN_LOCK = "M-3.6 -.6v-2.4a3.6 3.6 0 0 1 6.8 -1.6M-5 -.6h10v6.6h-10z";
const STOP = "M-4 -4l8 8M4 -4l-8 8";
const BANG = "M0 -5.4v6.4M0 4.6v.2";
const TICK = "M-4.6 .4l3.2 3.4 6 -7";
const MARKS = { mtls: LOCK, lane: TICK, plain: OPEN_LOCK, denied: STOP, failed: BANG };
const ICONS = {
  service: "M0 -7.5l6.5 3.75v7.5L0 7.5l-6.5 -3.75v-7.5z",
  workload: "M-6 -6h12v12h-12z",
  external: "M0 -7a7 7 0 1 1 0 14a7 7 0 0 1 0 -14M-7 0h14M0 -7c4 4 4 10 0 14c-4 -4 -4 -10 0 -14",
  outside: "M-6.5 3.5a4 4 0 0 1 1 -7.6a5 5 0 0 1 9.4 1a3.4 3.4 0 0 1 .6 6.6z",
  namespace: "M-7 -5h5l2 2h7v9h-14z",
};

export class Graph {
  /** `on` has select(kind, id), hover and open(namespace). */
  constructor(stage, on) {
    this.on = on;
    this.nodes = new Map();
    this.edges = new Map();
    this.positions = new Map();
    this.current = null;
    this.selection = null;
    this.world = svg("g", { class: "world" });
    this.edgeLayer = svg("g", { class: "edges" });
    this.labelLayer = svg("g", { class: "labels" });
    this.nodeLayer = svg("g", { class: "nodes" });
    this.world.append(this.edgeLayer, this.labelLayer, this.nodeLayer);
    this.surface = svg("svg", { class: "graph", role: "group", "aria-label": "Services; the arrow keys go from one to the next" }, pattern(), svg("rect", { class: "ground", width: "100%", height: "100%", fill: "url(#dots)" }), this.world);
    stage.prepend(this.surface);
    this.view = new Viewport(this.surface, this.world, (scale) => {
      setAttribute(this.surface, "data-zoom", scale < TINY ? "tiny" : scale < FAR ? "far" : "near");
      document.getElementById("dots").setAttribute("patternTransform", this.world.getAttribute("transform"));
    });
    this.surface.addEventListener("click", (event) => {
      if (!this.view.dragged && !event.target.closest(".node, .edge, .label")) this.on.select(null, null);
    });
    this.surface.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Draw `view` (model.js). */
  update(view) {
    const topology = [...view.nodes.map((node) => node.id), "|", ...view.edges.map((edge) => edge.id)].sort().join("\n");
    if (topology !== this.topology) this.#arrange(view, topology);
    this.surface.toggleAttribute("data-many", view.edges.length > LABELS_UP_TO);
    this.surface.toggleAttribute("data-still", view.edges.length > FLOWS_UP_TO);
    sync(this.nodes, view.nodes, this.nodeLayer, (node) => this.#makeNode(node));
    for (const node of view.nodes) this.#drawNode(this.nodes.get(node.id), node);
    sync(this.edges, view.edges, this.edgeLayer, (edge) => this.#makeEdge(edge), (parts) => parts.label.remove());
    for (const edge of view.edges) this.#drawEdge(this.edges.get(edge.id), edge);
    this.#rove();
    this.#emphasise();
  }

  fit() {
    const boxes = [...this.nodes.keys()].map((id) => this.positions.get(id)).filter(Boolean);
    if (!boxes.length) return;
    const x = Math.min(...boxes.map((box) => box.x));
    const y = Math.min(...boxes.map((box) => box.y));
    const width = Math.max(...boxes.map((box) => box.x)) + WIDTH - x;
    const height = Math.max(...boxes.map((box) => box.y)) + HEIGHT - y;
    this.view.fit({ x, y, width, height });
  }

  /** Lay everything out anew, as on a fresh page. */
  arrangeAnew() {
    this.topology = null;
    this.positions = new Map();
  }

  select(kind, id) {
    this.selection = id === null ? null : { kind, id };
    this.#emphasise();
  }

  focusNode(id) {
    const parts = this.nodes.get(id ?? this.current);
    if (parts) parts.root.focus({ preventScroll: true });
  }

  #arrange(view, topology) {
    const ids = view.nodes.map((node) => node.id);
    const first = this.positions.size === 0;
    const linked = new Set(view.edges.flatMap((edge) => [edge.source, edge.target]));
    const unplaced = [...linked].filter((id) => !this.positions.has(id) || this.positions.get(id).idle).length;
    // While nobody has taken hold of the picture it may become better; afterwards it may only grow.
    const anew = first || this.filtered || (!this.view.touched && unplaced > NEW_SHARE * linked.size);
    this.placed = anew ? layout(ids, view.edges) : extend(this.placed, ids, view.edges);
    this.positions = this.placed.boxes;
    this.routes = routesOf(this.placed, view.edges);
    this.topology = topology;
    this.wantsFit = anew || !this.view.touched;
    this.filtered = false;
  }

  #makeNode(node) {
    const icon = svg("path", { class: "icon", transform: "translate(24 29)" });
    const name = svg("text", { class: "name", x: 44, y: 25 });
    const about = svg("text", { class: "about", x: 44, y: 43 });
    const rate = svg("text", { class: "rate", x: WIDTH - 14, y: 43, "text-anchor": "end" });
    const health = svg("circle", { class: "health", cx: WIDTH - 16, cy: 20, r: 4.5 });
    const title = svg("title");
    const root = svg("g", { class: "node", role: "button", tabindex: "-1", "data-id": node.id },
      title,
      svg("rect", { class: "halo", x: -5, y: -5, width: WIDTH + 10, height: HEIGHT + 10, rx: 17 }),
      svg("rect", { class: "card", width: WIDTH, height: HEIGHT, rx: 13 }),
      svg("rect", { class: "stripe", x: 0, y: 13, width: 4, height: HEIGHT - 26, rx: 2 }),
      svg("circle", { class: "disc", cx: 24, cy: 29, r: 14 }),
      icon, name, about, rate, health);
    root.addEventListener("click", () => {
      if (this.view.dragged) return;
      this.current = node.id;
      this.on.select("node", node.id);
    });
    root.addEventListener("dblclick", () => this.on.open(node.id));
    root.addEventListener("focus", () => {
      this.current = node.id;
      this.#rove();
      const spot = this.positions.get(node.id);
      if (spot && root.matches(":focus-visible")) this.view.reveal({ ...spot, width: WIDTH, height: HEIGHT });
    });
    for (const [event, id] of [["pointerenter", node.id], ["pointerleave", null]]) {
      root.addEventListener(event, () => {
        this.hovered = id;
        this.#emphasise();
      });
    }
    return { root, icon, name, about, rate, health, title };
  }

  #drawNode(parts, node) {
    const spot = this.positions.get(node.id);
    setAttribute(parts.root, "transform", `translate(${spot.x} ${spot.y})`);
    setAttribute(parts.root, "data-kind", node.kind);
    setAttribute(parts.root, "data-worst", node.worst);
    setAttribute(parts.root, "data-mesh", node.kind === "service" || node.kind === "workload" ? node.mesh : null);
    setAttribute(parts.icon, "d", ICONS[node.kind] ?? ICONS.service);
    setText(parts.name, short(node.name, 17));
    setAttribute(parts.name, "data-long", node.name.length > 12 ? "yes" : null);
    setText(parts.about, short(aboutOf(node), 17));
    const traffic = Math.max(node.in.opened, node.out.opened);
    setText(parts.rate, traffic > 0 ? perSecond(traffic) : "");
    setAttribute(parts.health, "data-health", node.health);
    setText(parts.title, `${node.namespace ? `${shown(node.namespace)}/` : ""}${shown(node.name)}`);
    setAttribute(parts.root, "aria-label", spoken(node));
  }

  #makeEdge(edge) {
    const line = svg("path", { class: "line" });
    const flow = svg("path", { class: "flow" });
    const hit = svg("path", { class: "hit" });
    const arrow = svg("path", { class: "arrow", d: "M0 0l-9 -4.5v9z" });
    const root = svg("g", { class: "edge", "aria-hidden": "true", "data-id": edge.id }, line, flow, arrow, hit);
    const mark = svg("path", { class: "mark" });
    const text = svg("text", { class: "what", y: 4 });
    const pill = svg("rect", { class: "pill", y: -11, height: 22, rx: 11 });
    const label = svg("g", { class: "label", "aria-hidden": "true" }, pill, mark, text);
    this.labelLayer.append(label);
    const parts = { root, line, flow, hit, arrow, label, mark, text, pill };
    for (const each of [root, label]) {
      each.addEventListener("click", () => !this.view.dragged && this.on.select("edge", parts.edge.id, parts.edge));
      each.addEventListener("pointerenter", () => this.#hoverEdge(edge.id));
      each.addEventListener("pointerleave", () => this.#hoverEdge(null));
    }
    return parts;
  }

  #drawEdge(parts, edge) {
    parts.edge = edge;
    const route = this.routes.get(edge.id);
    for (const path of [parts.line, parts.flow, parts.hit]) setAttribute(path, "d", route.d);
    const volume = edge.rate ? edge.rate.sent_bytes + edge.rate.received_bytes : 0;
    const width = 1.6 + Math.min(4.4, Math.log10(1 + volume / 100) * 0.85);
    setAttribute(parts.line, "stroke-width", width.toFixed(2));
    setAttribute(parts.flow, "stroke-width", (width + 0.6).toFixed(2));
    setAttribute(parts.root, "data-state", edge.state);
    setAttribute(parts.label, "data-state", edge.state);
    setAttribute(parts.root, "data-active", edge.active ? "yes" : null);
    setAttribute(parts.root, "data-pace", edge.active ? pace(edge.rate) : null);
    setAttribute(parts.arrow, "transform", `translate(${route.end.x} ${route.end.y}) rotate(${route.end.angle})`);
    const what = labelOf(edge);
    setText(parts.text, what);
    const wide = what.length ? 36 + what.length * 6.9 : 24;
    setAttribute(parts.pill, "x", -wide / 2);
    setAttribute(parts.pill, "width", wide);
    setAttribute(parts.mark, "d", MARKS[edge.state] ?? MARKS[{ mutual_tls: "mtls", lane: "lane" }[edge.security]] ?? "");
    setAttribute(parts.mark, "transform", `translate(${what.length ? -wide / 2 + 14 : 0} 0)`);
    setAttribute(parts.text, "x", -wide / 2 + 25);
    setAttribute(parts.label, "transform", `translate(${route.middle.x} ${route.middle.y})`);
    setAttribute(parts.label, "data-quiet", edge.active || edge.state === "denied" || edge.state === "failed" ? null : "yes");
  }

  #hoverEdge(id) {
    this.hoveredEdge = id;
    this.#emphasise();
  }

  /** Whoever is pointed at or selected stands out with what belongs to it; the rest steps back. */
  #emphasise() {
    const node = this.hovered ?? (this.selection?.kind === "node" ? this.selection.id : null);
    const edge = this.hoveredEdge ?? (this.selection?.kind === "edge" ? this.selection.id : null);
    const near = new Set(node === null ? [] : [node]);
    for (const [id, parts] of this.edges) {
      const { source, target } = parts.edge;
      const involved = id === edge || source === node || target === node;
      if (involved) near.add(source).add(target);
      for (const each of [parts.root, parts.label]) setAttribute(each, "data-near", involved ? "yes" : null);
      setAttribute(parts.root, "data-selected", this.selection?.kind === "edge" && this.selection.id === id ? "yes" : null);
    }
    const some = (node !== null && this.nodes.has(node)) || (edge !== null && this.edges.has(edge));
    setAttribute(this.surface, "data-emphasis", some ? "yes" : null);
    for (const [id, parts] of this.nodes) {
      setAttribute(parts.root, "data-near", near.has(id) ? "yes" : null);
      const selected = this.selection?.kind === "node" && this.selection.id === id;
      setAttribute(parts.root, "data-selected", selected ? "yes" : null);
    }
  }

  /** One node of the graph is in the page's order of focus; the arrow keys choose which. */
  #rove() {
    if (!this.nodes.has(this.current)) this.current = this.nodes.keys().next().value ?? null;
    for (const [id, { root }] of this.nodes) setAttribute(root, "tabindex", id === this.current ? "0" : "-1");
  }

  #key(event) {
    const turn = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (turn) {
      event.preventDefault();
      if (event.shiftKey) this.view.pan(-turn[0] * 80, -turn[1] * 80);
      else this.focusNode(this.#towards(turn));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (this.current?.startsWith("namespace/") && event.key === "Enter") this.on.open(this.current);
      else this.on.select("node", this.current);
    }
  }

  #towards([dx, dy]) {
    const from = this.positions.get(this.current);
    let best = this.current;
    let least = Infinity;
    for (const id of this.nodes.keys()) {
      const to = this.positions.get(id);
      const ahead = (to.x - from.x) * dx + (to.y - from.y) * dy;
      const aside = Math.abs((to.x - from.x) * dy) + Math.abs((to.y - from.y) * dx);
      if (id !== this.current && ahead > 1 && ahead + 2 * aside < least) {
        least = ahead + 2 * aside;
        best = id;
      }
    }
    return best;
  }
}

function sync(held, wanted, layer, make, dropped = () => {}) {
  const ids = new Set(wanted.map((each) => each.id));
  for (const [id, parts] of held) {
    if (ids.has(id)) continue;
    parts.root.remove();
    dropped(parts);
    held.delete(id);
  }
  for (const each of wanted) {
    if (held.has(each.id)) continue;
    const parts = make(each);
    held.set(each.id, parts);
    layer.append(parts.root);
  }
}

function pattern() {
  return svg("defs", {}, svg("pattern", { id: "dots", width: 28, height: 28, patternUnits: "userSpaceOnUse" }, svg("circle", { cx: 1.4, cy: 1.4, r: 1.4 })));
}
