// What the picture says of nodes and edges: short where it is drawn, whole where it is read out.  Pure.

import { shown } from "/static/dom.js";
import { bytesPerSecond, count, perSecond, plural } from "/static/format.js";
import { STATE_WORDS } from "/static/model.js";

const HEALTH_WORDS = { ok: "healthy", degraded: "not all well", down: "no endpoint is ready", unknown: "" };

export function labelOf(edge) {
  if (!edge.rate) return "";
  if (edge.state === "denied") return edge.rate.denied > 0 ? `denied ${perSecond(edge.rate.denied)}` : "denied";
  if (edge.state === "failed" && edge.rate.failed > 0) return `${perSecond(edge.rate.failed)} fail`;
  if (edge.rate.opened > 0) return perSecond(edge.rate.opened);
  const volume = edge.rate.sent_bytes + edge.rate.received_bytes;
  return volume > 0 ? bytesPerSecond(volume) : "";
}

export function pace(rate) {
  const rows = Math.log10(1 + rate.opened * 4 + (rate.sent_bytes + rate.received_bytes) / 4000);
  return String(Math.max(1, Math.min(4, Math.ceil(rows))));
}

export function aboutOf(node) {
  if (node.kind === "namespace") return plural(node.members, "service");
  if (node.kind === "outside") return "outside the mesh";
  if (node.kind === "external") return node.namespace;
  return node.namespace;
}

export function spoken(node) {
  if (node.kind === "namespace") {
    return `Namespace ${shown(node.name)}: ${plural(node.members, "service")}${node.ill ? `, ${node.ill} not well` : ""}. Enter opens it`;
  }
  const words = [`${node.kind === "service" ? "Service" : node.kind === "workload" ? "Workload" : "Outside:"} ${shown(node.name)}`];
  if (node.namespace) words.push(`namespace ${shown(node.namespace)}`);
  if (node.kind === "service") words.push(`${node.ready} of ${plural(node.endpoints, "endpoint")} ready`);
  if (node.mesh === "none" && node.workloads) words.push("not in the mesh");
  if (HEALTH_WORDS[node.health]) words.push(HEALTH_WORDS[node.health]);
  if (node.in.opened > 0) words.push(`${count(node.in.opened)} connections a second in`);
  if (node.out.opened > 0) words.push(`${count(node.out.opened)} a second out`);
  if (node.worst === "denied" || node.worst === "failed" || node.worst === "plain") words.push(`some ${STATE_WORDS[node.worst]}`);
  return words.join(", ");
}
