// What is known of one service, or of one edge, when somebody asks.

import { html, shown } from "/static/dom.js";
import { bytesPerSecond, count, duration, perSecond, plural } from "/static/format.js";
import { stateOf } from "/static/model.js";
import { certificates, facts, link, live, name, records, section, sparkline, stateChip, table } from "/static/parts.js";

const KINDS = { service: "Service", workload: "Workload", external: "Place outside", outside: "Outside the mesh", namespace: "Namespace" };

/** The inside of the panel for one node; `go` selects something else, `act` does what a button says. */
export function nodeDetail(node, go, act) {
  const ins = node.edges.filter((edge) => edge.target === node.id);
  const outs = node.edges.filter((edge) => edge.source === node.id);
  return [
    heading(KINDS[node.kind] ?? "Node", node.name, node.namespace, act),
    html("p", { class: "chips" },
      node.kind === "service" ? html("span", { class: "state", "data-health": node.health }, `${node.ready} of ${plural(node.endpoints, "endpoint")} ready`) : null,
      node.workloads ? html("span", { class: "state", "data-state": node.mesh === "none" ? "plain" : "mtls" }, { all: "in the mesh", some: "partly in the mesh", none: "not in the mesh" }[node.mesh]) : null),
    html("p", { class: "actions" }, html("button", { type: "button", onclick: () => act("focus", node.id) }, "Show only its neighbours")),
    node.service ? section("Service", facts([
      ["addresses", (node.service.cluster_ips ?? []).map(shown).join(", ") || "none"],
      ["ports", (node.service.ports ?? []).map((port) => `${port.port}${port.name ? ` (${shown(port.name)})` : ""}`).join(", ") || "none"],
      ["balancing", shown(node.service.load_balancing ?? "\u2013")],
      ...(node.service.hosts?.length ? [["hosts", node.service.hosts.map(shown).join(", ")]] : []),
    ])) : null,
    section("Who asks it", edgeList(ins, "source", go)),
    section("Whom it asks", edgeList(outs, "target", go)),
    node.endpoint_rows.length ? section("Endpoints", table("Endpoints", ["address", "pod", "health", "open", "latency"],
      node.endpoint_rows.map((row) => [
        name(row.address, 30), name(row.workload?.split("/").pop() ?? "\u2013", 24),
        html("span", { class: "state", "data-health": row.ready !== true ? "down" : row.unhealthy_at.length ? "degraded" : "ok", title: row.unhealthy_at.join("; ") || null }, row.ready !== true ? "not ready" : row.unhealthy_at.length ? "ejected or unhealthy" : "healthy"),
        count(row.open_connections), row.latency_ms === null || row.latency_ms === undefined ? "\u2013" : `${count(row.latency_ms)} ms`,
      ]))) : null,
    node.workload_rows.length ? section("Pods", table("Pods", ["pod", "node", "state"],
      node.workload_rows.map((row) => [name(row.name, 30), name(row.node, 20), row.agent?.error ? html("span", { class: "wrong" }, name(row.agent.error, 80)) : shown(row.agent?.state ?? row.state)]))) : null,
    section("Identities and certificates", certificates(node.certificates)),
    section(`Live connections (${node.live.length})`, live(node.live)),
    section("Ended last", records(node.recent, { withEnds: true })),
  ];
}

/** The inside of the panel for one edge. */
export function edgeDetail(edge, go, act) {
  const state = stateOf(edge);
  const title = `${shownName(edge.source)} \u2192 ${shownName(edge.target)}`;
  return [
    heading("Connections", title, "", act),
    html("p", { class: "chips" }, stateChip(state), securityChip(edge, state)),
    html("p", { class: "actions" },
      link(`From ${shownName(edge.source)}`, () => go("node", edge.source)), link(`To ${shownName(edge.target)}`, () => go("node", edge.target))),
    whyNot(edge, state),
    section("Now", facts([
      ["new connections", perSecond(edge.rate?.opened)], ["open", count(edge.open)],
      ["there", bytesPerSecond(edge.rate?.received_bytes)], ["back", bytesPerSecond(edge.rate?.sent_bytes)],
      ["denied", perSecond(edge.rate?.denied)], ["failed", perSecond(edge.rate?.failed)],
    ]), sparkline(edge.history, (each) => each.opened, "New connections a second over the last two minutes")),
    section("Since the agents started", facts([
      ["connections", count(edge.total.opened)], ["denied", count(edge.total.denied)], ["failed", count(edge.total.failed)],
      ...Object.entries(edge.flags).filter(([flag]) => flag !== "-").map(([flag, number]) => [flag, count(number)]),
    ])),
    section("Identities that were proven", html("ul", { class: "cards" }, edge.identities.map((pair) => html("li", {},
      html("p", {}, "from ", pair.source ? html("code", {}, name(pair.source, 80)) : "nobody: plaintext proves nothing"),
      html("p", {}, "to ", pair.destination ? html("code", {}, name(pair.destination, 80)) : "nobody"))))),
    section("Certificates", certificates(edge.certificates)),
    section(`Live connections (${edge.live.length})`, live(edge.live)),
    section("Ended last", records(edge.recent, { withEnds: false })),
  ];
}

/** The inside of the panel for a namespace that is drawn as one box. */
export function groupDetail(group, members, go, act) {
  return [
    heading("Namespace", group.name, "", act),
    html("p", { class: "actions" }, html("button", { type: "button", onclick: () => act("open", group.id) }, "Show its services")),
    section(plural(members.length, "service"), html("ul", { class: "rows" }, members.map((node) => html("li", {},
      link(name(node.name, 40), () => go("node", node.id)),
      html("span", { class: "state", "data-health": node.health }, node.kind === "service" ? `${node.ready}/${node.endpoints}` : "workload"))))),
  ];
}

/** The denials that the agents remember, of the whole mesh, newest first. */
export function denialsDetail(rows, go, act) {
  const edges = new Set(rows.map((row) => (row.source && row.target ? `${row.source}>${row.target}` : null)).filter(Boolean));
  return [
    heading("The whole mesh", "Denied last", "", act),
    edges.size ? section("Between whom", html("ul", { class: "rows" }, [...edges].map((id) => html("li", {},
      link(id.split(">").map(shownName).join(" \u2192 "), () => go("edge", id)))))) : null,
    section(plural(rows.length, "denial"), records(rows, { withEnds: true })),
  ];
}

export function agentDetail(agent, act) {
  const clock = agent.certificates ?? [];
  return [
    heading("Agent", agent.node, "", act),
    agent.error ? html("p", { class: "wrong" }, agent.error) : null,
    html("p", { class: "chips" }, html("span", { class: "state", "data-health": agent.error ? "down" : agent.ready ? "ok" : "degraded" }, agent.error ? "not reached" : agent.ready ? "ready" : "not ready")),
    facts([["version", shown(agent.version ?? "\u2013")], ["running for", duration(agent.uptime_s)], ["open connections", count(agent.open)],
      ["CA", agent.ca?.reachable === false ? `not reached: ${shown(agent.ca.last_error)}` : agent.ca?.reachable ? "reached" : "\u2013"]]),
    agent.reasons.length ? section("Why it is not ready", html("ul", { class: "cards" }, agent.reasons.map((each) => html("li", { "data-bad": "yes" }, shown(each))))) : null,
    agent.warnings.length ? section("Warnings", html("ul", { class: "cards" }, agent.warnings.map((each) => html("li", { "data-bad": "some" }, shown(each))))) : null,
    section("Certificates it holds", certificates(clock.map((row) => ({ ...row, agent: agent.node })))),
  ];
}

/** The last connection that went wrong: who opens a red edge wants to know why before anything else. */
function whyNot(edge, state) {
  const wanted = { denied: (row) => row.response_flags === "DENY", failed: (row) => !["-", "DENY", "CUT"].includes(row.response_flags) }[state];
  const last = wanted && edge.recent.find(wanted);
  return last ? section(state === "denied" ? "Denied last" : "Failed last", records([last], { withEnds: false })) : null;
}

const heading = (kind, title, namespace, act) => html("header", {},
  html("div", {}, html("p", { class: "kind" }, kind, namespace ? html("span", {}, " in ", name(namespace, 40)) : null), html("h2", { tabindex: "-1" }, name(title, 80))),
  html("button", { type: "button", class: "close", "aria-label": "Close details", onclick: () => act("close") }, "\u00d7"));

function edgeList(edges, end, go) {
  if (!edges.length) return html("p", { class: "none" }, "Nobody that was seen.");
  return html("ul", { class: "rows" }, edges.map((edge) => html("li", {},
    link(shownName(edge[end]), () => go("edge", edge.id)), stateChip(stateOf(edge)), html("span", { class: "number" }, perSecond(edge.rate?.opened)))));
}

function securityChip(edge, state) {
  const words = { mutual_tls: "mutual TLS 1.3", lane: "on one node, judged by the kernel, not encrypted", none: "plaintext", mixed: "partly plaintext", unknown: "" }[edge.security] ?? "";
  return words && state !== "mtls" && !(state === "plain" && edge.security === "none") ? html("span", { class: "state", "data-state": { mutual_tls: "mtls", lane: "lane" }[edge.security] ?? "plain" }, words) : null;
}

export const shownName = (id) => shown(id.split("/").slice(1).join("/"));
