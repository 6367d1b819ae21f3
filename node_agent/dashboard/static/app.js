// The page: asks, keeps what people chose, and hands both to those who draw.

import { conditionOf } from "/static/condition.js";
import { byId, html, setAttribute, setText, shown } from "/static/dom.js";
import { agentDetail, denialsDetail, edgeDetail, groupDetail, nodeDetail } from "/static/detail.js";
import { bytesPerSecond, count, perSecond, plural } from "/static/format.js";
import { Graph } from "/static/graph.js";
import { GROUP_FROM, totalsOf, viewOf } from "/static/model.js";
import { link } from "/static/parts.js";
import { Tables } from "/static/table.js";
import { startTheme } from "/static/theme.js";

const choice = { search: "", namespace: "", hideIdle: false, problems: false, focus: null, group: null, opened: new Set() };
let mesh = null;
let selection = null;
let timer = null;
let failures = 0;
let lastAnswer = null;
let known = { denied: new Set(), missing: new Set() };
let returnTo = null;

const graph = new Graph(byId("graph-view"), { select, open: openGroup });
const tables = new Tables(byId("table-view"), select);

// --- asking ---------------------------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(15000) });
  if (answer.status === 401) {
    location.assign("/login");
    throw new Error("the session is over");
  }
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`the dashboard answered ${answer.status}`);
  return answer.json();
}

async function poll() {
  clearTimeout(timer);
  let pause = 2000;
  try {
    const answer = await ask("/api/mesh");
    failures = 0;
    lastAnswer = { ...answer, at: performance.now() };
    pause = answer.mesh ? answer.interval_s * 1000 : 400;
    if (answer.mesh) {
      mesh = answer.mesh;
      draw();
      await refreshDetail();
    }
  } catch (error) {
    failures += 1;
    pause = Math.min(15000, 1000 * 2 ** failures);
    lastAnswer = { ...lastAnswer, lost: error.name === "TimeoutError" ? "it does not answer" : "it can not be reached" };
  }
  showCondition();
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, pause);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else poll();
});

// --- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  if (choice.group === null) byId("group").checked = choice.group = mesh.nodes.length > GROUP_FROM;
  const view = viewOf(mesh, { ...choice, group: choice.group && !choice.search && !choice.focus });
  showNamespaces();
  showTotals();
  showAgents();
  announce();
  const problem = emptyText(view);
  setText(byId("empty"), problem);
  byId("empty").hidden = problem === "";
  graph.update(view);
  if (graph.wantsFit && byId("graph-view").clientWidth) {
    graph.fit();
    graph.wantsFit = false;
  }
  if (!byId("table-view").hidden) tables.update(viewOf(mesh, { ...choice, group: false }));
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
}

function emptyText(view) {
  if (view.nodes.length) return "";
  return mesh.nodes.length ? "Nothing fits the filters." : "No services or workloads yet: the registry of this agent is empty.";
}

function changed({ relayout = true } = {}) {
  if (relayout) {
    graph.filtered = true;
    graph.view.touched = false;
  }
  setAttribute(byId("group"), "aria-disabled", choice.search || choice.focus ? "true" : null);
  byId("group").checked = Boolean(choice.group);
  byId("unfocus").hidden = choice.focus === null;
  if (choice.focus) setText(byId("unfocus"), `Around ${shown(choice.focus.split("/").slice(1).join("/"))} \u00d7`);
  if (mesh) draw();
}

function showCondition() {
  const { state, text, why } = conditionOf(lastAnswer, mesh, performance.now());
  setAttribute(byId("live"), "data-state", state);
  setText(byId("live-text"), text);
  setText(byId("banner"), why);
  byId("banner").hidden = why === "";
  byId("banner").dataset.state = state;
}

function showTotals() {
  const { services, open, share, rate } = totalsOf(mesh);
  const pairs = [
    ["services", count(services)],
    ["connections", perSecond(rate?.opened)],
    ["open", count(open)],
    ["traffic", bytesPerSecond(rate && rate.sent_bytes + rate.received_bytes)],
    ["mutual TLS", share === null ? "\u2013" : `${Math.floor(share * 100)} %`],
    ["denied", perSecond(rate?.denied)],
  ];
  const place = byId("totals");
  if (!place.childElementCount) {
    place.append(...pairs.map(([term]) => html("div", {}, html("dt", {}, term), html("dd", {}, term === "denied" ? link("", () => select("denials", "all")) : null))));
  }
  pairs.forEach(([, value], each) => setText(place.children[each].lastElementChild.firstElementChild ?? place.children[each].lastElementChild, value));
  setAttribute(place.lastElementChild, "data-alarm", rate?.denied > 0 ? "yes" : null);
}

function showNamespaces() {
  const names = [...new Set(mesh.nodes.map((node) => node.namespace).filter(Boolean))].sort();
  const place = byId("namespace");
  if (place.dataset.names === names.join("\n")) return;
  place.dataset.names = names.join("\n");
  place.replaceChildren(html("option", { value: "" }, "all"), ...names.map((each) => html("option", { value: each }, each)));
  place.value = names.includes(choice.namespace) ? choice.namespace : "";
}

function showAgents() {
  const place = byId("agents");
  const wanted = mesh.agents.map((agent) => [agent, agent.error ? (agent.needed ? "down" : "none") : agent.ready ? "ok" : "degraded"]);
  const key = JSON.stringify(wanted.map(([agent, health]) => [agent.node, health]));
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const few = wanted.length <= 8 ? wanted : wanted.filter(([, health]) => health !== "ok" && health !== "none").slice(0, 8);
  const words = { ok: "agent ready", degraded: "agent not ready", down: "agent not reached", none: "no agent, and no pod of the mesh" };
  place.replaceChildren(...few.map(([agent, health]) => html("button", { type: "button", class: "agent", "data-health": health, "aria-label": `${shown(agent.node)}, ${words[health]}`, title: words[health], onclick: () => select("agent", agent.node) },
    html("span", { class: "dot", "aria-hidden": "true" }), shown(agent.node))));
  if (wanted.length > 8) place.append(html("span", { class: "more" }, `${wanted.length} agents`));
}

/** Tell, once, what somebody who does not see the picture would want to hear. */
function announce() {
  const denied = new Set(mesh.edges.filter((edge) => edge.denied_lately).map((edge) => edge.id));
  const missing = new Set(mesh.agents.filter((agent) => agent.error && agent.needed).map((agent) => agent.node));
  const news = [];
  const fresh = [...denied].filter((id) => !known.denied.has(id));
  if (fresh.length) news.push(`${plural(fresh.length, "new denial")}: ${fresh.slice(0, 3).map((id) => id.replace(">", " to ")).join("; ")}`);
  const lost = [...missing].filter((node) => !known.missing.has(node));
  if (lost.length) news.push(`agent not reached: ${lost.slice(0, 3).join(", ")}`);
  if ([...known.missing].some((node) => !missing.has(node))) news.push("an agent is back");
  known = { denied, missing };
  if (news.length) setText(byId("announcer"), news.join(". "));
}

// --- details --------------------------------------------------------------------------------------------------------

function select(kind, id, drawn = null) {
  if (id !== null && kind === "edge" && drawn && drawn.single === false) {
    // Several edges between groups: what is behind them is seen when they are opened.
    const group = [drawn.source, drawn.target].find((each) => each.startsWith("namespace/"));
    if (group) return select("node", group);
  }
  const before = selection;
  selection = id === null ? null : { kind, id };
  if (selection && !before) returnTo = document.activeElement;
  graph.select(kind, id);
  byId("detail").hidden = selection === null;
  document.body.toggleAttribute("data-detail", selection !== null);
  if (selection === null) {
    if (before && returnTo?.isConnected) returnTo.focus({ preventScroll: true });
    return undefined;
  }
  byId("detail").replaceChildren(html("p", { class: "none" }, "Asking\u2026"));
  return refreshDetail({ focus: true });
}

async function refreshDetail({ focus = false } = {}) {
  if (!selection || !mesh) return;
  const wanted = selection;
  let content;
  if (wanted.kind === "agent") {
    const agent = mesh.agents.find((each) => each.node === wanted.id);
    content = agent ? agentDetail(agent, act) : null;
  } else if (wanted.kind === "denials") {
    content = denialsDetail(mesh.denials, select, act);
  } else if (wanted.id.startsWith("namespace/")) {
    const view = viewOf(mesh, { ...choice, group: true });
    const group = view.nodes.find((node) => node.id === wanted.id);
    content = group ? groupDetail(group, mesh.nodes.filter((node) => node.namespace === group.namespace), select, act) : null;
  } else {
    const answer = await ask(`/api/${wanted.kind}?id=${encodeURIComponent(wanted.id)}`);
    if (selection !== wanted) return;
    content = answer && (wanted.kind === "node" ? nodeDetail : edgeDetail)(answer, select, act);
  }
  replaceDetail(content ?? gone(), focus);
}

const gone = () => [html("header", {}, html("h2", { tabindex: "-1" }, "Gone"), html("button", { type: "button", class: "close", "aria-label": "Close details", onclick: () => act("close") }, "\u00d7")), html("p", { class: "none" }, "It is not in the mesh any more.")];

/** New contents, with the reader's place kept: scroll position, and the button that has the focus. */
function replaceDetail(content, focus) {
  const place = byId("detail");
  const top = place.scrollTop;
  const buttons = () => [...place.querySelectorAll("button, [tabindex]")];
  const held = place.contains(document.activeElement) ? buttons().indexOf(document.activeElement) : -1;
  place.replaceChildren(...content.filter(Boolean));
  place.scrollTop = focus ? 0 : top;
  if (focus) place.querySelector("h2")?.focus({ preventScroll: true });
  else if (held >= 0) buttons()[held]?.focus({ preventScroll: true });
}

function act(what, id) {
  if (what === "close") select(null, null);
  else if (what === "focus") focusOn(id);
  else if (what === "open") openGroup(id);
}

function focusOn(id) {
  choice.focus = choice.focus === id ? null : id;
  changed();
}

function openGroup(id) {
  if (!id?.startsWith("namespace/")) return;
  choice.opened.add(id.slice("namespace/".length));
  select(null, null);
  changed();
  const first = mesh.nodes.find((node) => `namespace/${node.namespace}` === id);
  if (first) graph.focusNode(first.id);
}

// --- what people do -------------------------------------------------------------------------------------------------

function showView(name) {
  byId("graph-view").hidden = name !== "graph";
  byId("table-view").hidden = name !== "table";
  setAttribute(byId("view-graph"), "aria-pressed", String(name === "graph"));
  setAttribute(byId("view-table"), "aria-pressed", String(name === "table"));
  byId("group-label").hidden = name !== "graph";
  if (mesh) draw();
}

const isTable = () => !byId("table-view").hidden;
byId("view-graph").addEventListener("click", () => showView("graph"));
byId("view-table").addEventListener("click", () => showView("table"));
byId("search").addEventListener("input", (event) => {
  choice.search = event.target.value;
  changed();
});
byId("namespace").addEventListener("change", (event) => {
  choice.namespace = event.target.value;
  changed();
});
for (const [id, name] of [["hide-idle", "hideIdle"], ["problems", "problems"], ["group", "group"]]) {
  byId(id).addEventListener("change", (event) => {
    choice[name] = event.target.checked;
    if (name === "group") choice.opened.clear();
    changed();
  });
}
byId("unfocus").addEventListener("click", () => focusOn(choice.focus));
byId("zoom-in").addEventListener("click", () => graph.view.zoom(1.25));
byId("zoom-out").addEventListener("click", () => graph.view.zoom(0.8));
byId("fit").addEventListener("click", () => graph.fit());
byId("arrange").addEventListener("click", arrange);
byId("help-open").addEventListener("click", () => byId("help").showModal());
new ResizeObserver(() => !graph.view.touched && graph.fit()).observe(byId("graph-view"));

function arrange() {
  graph.arrangeAnew();
  if (mesh) draw();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea") || byId("help").open;
  if (event.key === "Escape" && !byId("help").open) {
    if (typing && choice.search) {
      byId("search").value = choice.search = "";
      changed();
    } else if (selection) select(null, null);
    else if (choice.focus) focusOn(choice.focus);
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const done = KEYS[event.key.toLowerCase()]?.();
  if (done !== undefined) event.preventDefault();
});

const KEYS = {
  "/": () => byId("search").focus() ?? true,
  "+": () => graph.view.zoom(1.25) ?? true,
  "=": () => graph.view.zoom(1.25) ?? true,
  "-": () => graph.view.zoom(0.8) ?? true,
  0: () => graph.fit() ?? true,
  a: () => arrange() ?? true,
  t: () => showView(isTable() ? "graph" : "table") ?? true,
  f: () => focusOn(selection?.kind === "node" ? selection.id : graph.current) ?? true,
  "?": () => byId("help").showModal() ?? true,
};

startTheme(byId("theme"));
setInterval(showCondition, 1000);
poll();
