// What is to be seen of the mesh: filtered, focused, grouped.  Pure: no page, no clock.

const NOTHING = { opened: 0, sent_bytes: 0, received_bytes: 0, denied: 0, failed: 0 };
const SEVERITY = { idle: 0, unknown: 1, mtls: 2, lane: 3, failed: 4, plain: 5, denied: 6 };
export const GROUP_FROM = 60;

/** What an edge is, in one word: the worst that is true of it now or was a moment ago. */
export function stateOf(edge) {
  const rate = edge.rate ?? NOTHING;
  if (edge.denied_lately || rate.denied > 0) return "denied";
  if (edge.total.opened > 0 && edge.total.denied >= edge.total.opened) return "denied";
  if (edge.failed_lately || rate.failed > 0) return "failed";
  if (edge.security === "none" || edge.security === "mixed") return "plain";
  if (rate.opened === 0 && rate.sent_bytes === 0 && rate.received_bytes === 0 && !edge.open) return "idle";
  return { mutual_tls: "mtls", lane: "lane" }[edge.security] ?? "unknown";
}

export const STATE_WORDS = {
  mtls: "mutual TLS",
  lane: "judged on the node (lane)",
  plain: "plaintext",
  denied: "denied",
  failed: "failing",
  idle: "no traffic now",
  unknown: "nothing carried yet",
};

const active = (edge) => edge.rate !== null && (edge.rate.opened > 0 || edge.rate.sent_bytes > 0 || edge.rate.received_bytes > 0);

/** The graph to draw, of the mesh and what people chose: {nodes, edges, hidden}. */
export function viewOf(mesh, choice) {
  let nodes = mesh.nodes.map((node) => ({ ...node, in: { ...NOTHING }, out: { ...NOTHING }, worst: "idle" }));
  let edges = mesh.edges.map((edge) => ({ ...edge, state: stateOf(edge), active: active(edge) }));
  const byId = new Map(nodes.map((node) => [node.id, node]));
  edges = edges.filter((edge) => byId.has(edge.source) && byId.has(edge.target));
  for (const edge of edges) {
    add(byId.get(edge.source).out, edge.rate);
    add(byId.get(edge.target).in, edge.rate);
    for (const id of [edge.source, edge.target]) {
      const node = byId.get(id);
      if (SEVERITY[edge.state] > SEVERITY[node.worst]) node.worst = edge.state;
    }
  }
  const all = nodes.length;
  const keep = chosen(nodes, edges, choice);
  nodes = nodes.filter((node) => keep.has(node.id));
  edges = edges.filter((edge) => keep.has(edge.source) && keep.has(edge.target));
  if (choice.group) ({ nodes, edges } = grouped(nodes, edges, choice.opened));
  return { nodes, edges, hidden: all - keep.size };
}

function chosen(nodes, edges, choice) {
  const words = choice.search.toLowerCase().split(/\s+/).filter(Boolean);
  let keep = new Set();
  for (const node of nodes) {
    const text = `${node.namespace}/${node.name} ${node.kind} ${(node.identities ?? []).join(" ")}`.toLowerCase();
    if (choice.namespace && node.namespace !== choice.namespace) continue;
    if (words.every((word) => text.includes(word))) keep.add(node.id);
  }
  if (words.length || choice.namespace) keep = withNeighbours(keep, edges);
  if (choice.focus) {
    const around = withNeighbours(new Set([choice.focus]), edges);
    keep = new Set([...keep].filter((id) => around.has(id)));
  }
  if (choice.hideIdle) {
    const busy = endsOf(edges.filter((edge) => edge.active || edge.open || edge.state !== "idle"));
    keep = new Set([...keep].filter((id) => busy.has(id)));
  }
  if (choice.problems) {
    const wrong = endsOf(edges.filter((edge) => ["denied", "failed", "plain"].includes(edge.state)));
    for (const node of nodes) if (["down", "degraded"].includes(node.health)) wrong.add(node.id);
    keep = new Set([...keep].filter((id) => wrong.has(id)));
  }
  return keep;
}

const endsOf = (edges) => new Set(edges.flatMap((edge) => [edge.source, edge.target]));

function withNeighbours(ids, edges) {
  const found = new Set(ids);
  for (const { source, target } of edges) {
    if (ids.has(source)) found.add(target);
    if (ids.has(target)) found.add(source);
  }
  return found;
}

/** Namespaces as nodes, but for those that are open; edges within one are counted, not drawn. */
function grouped(nodes, edges, opened) {
  const groups = new Map();
  const place = new Map();
  const shown = [];
  for (const node of nodes) {
    if (node.kind === "outside" || node.kind === "external" || opened.has(node.namespace)) {
      shown.push(node);
      place.set(node.id, node.id);
      continue;
    }
    const id = `namespace/${node.namespace}`;
    if (!groups.has(id)) {
      groups.set(id, {
        id, kind: "namespace", namespace: node.namespace, name: node.namespace, members: 0, ill: 0, mesh: node.mesh,
        endpoints: 0, ready: 0, workloads: 0, health: "ok", worst: "idle", within: { ...NOTHING },
        in: { ...NOTHING }, out: { ...NOTHING },
      });
    }
    const group = groups.get(id);
    group.members += 1;
    group.endpoints += node.endpoints;
    group.ready += node.ready;
    group.workloads += node.workloads;
    if (node.mesh !== group.mesh) group.mesh = "some";
    if (["down", "degraded"].includes(node.health)) {
      group.ill += 1;
      group.health = "degraded";
    }
    if (SEVERITY[node.worst] > SEVERITY[group.worst]) group.worst = node.worst;
    place.set(node.id, id);
  }
  const joined = new Map();
  for (const edge of edges) {
    const source = place.get(edge.source);
    const target = place.get(edge.target);
    if (source === target) {
      add(groups.get(source)?.within ?? {}, edge.rate);
      continue;
    }
    const id = `${source}>${target}`;
    const single = source === edge.source && target === edge.target;
    const before = joined.get(id);
    if (!before) {
      const total = { ...NOTHING };
      add(total, edge.total);
      joined.set(id, { ...edge, id, source, target, members: 1, single, total, rate: edge.rate && { ...edge.rate } });
    } else {
      before.members += 1;
      before.single = false;
      before.open += edge.open;
      before.active ||= edge.active;
      add(before.total, edge.total);
      if (edge.rate) add((before.rate ??= { ...NOTHING }), edge.rate);
      if (SEVERITY[edge.state] > SEVERITY[before.state]) before.state = edge.state;
    }
    if (groups.has(source)) add(groups.get(source).out, edge.rate);
    if (groups.has(target)) add(groups.get(target).in, edge.rate);
  }
  return { nodes: [...shown, ...groups.values()], edges: [...joined.values()] };
}

function add(sum, rate) {
  if (rate) for (const name of Object.keys(NOTHING)) sum[name] = (sum[name] ?? 0) + rate[name];
}

/** The whole mesh in a few numbers. */
export function totalsOf(mesh) {
  const sum = { ...NOTHING };
  let measured = false;
  let open = 0;
  let secured = 0;
  for (const edge of mesh.edges) {
    open += edge.open;
    if (edge.rate) {
      measured = true;
      add(sum, edge.rate);
      if (edge.security === "mutual_tls") secured += edge.rate.opened - edge.rate.denied;
    }
  }
  const services = mesh.nodes.filter((node) => node.kind === "service").length;
  const carried = sum.opened - sum.denied;
  const share = measured && carried > 0 ? Math.max(0, Math.min(1, secured / carried)) : null;
  return { services, open, share, rate: measured ? sum : null };
}
