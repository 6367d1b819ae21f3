// Where each node stands: who opens connections on the left, who is asked on the right.  Pure: the same graph
// is always laid out alike, in every browser, and nothing here looks at the page.
//
//   layers      longest path from whoever nobody asks; an edge that closes a circle does not count
//   order       barycentres, sweeping left and right, from the order of the names
//   heights     each node goes towards the middle of its neighbours, in order, with its distance kept
//   the idle    nodes without an edge stand in a block of their own below
//
// A tangle, in which many ask each other in circles, has no left and right: it stands in a ring.

export const WIDTH = 196;
export const HEIGHT = 58;
const GAP_X = 132;
const GAP_Y = 26;
const SUBCOLUMN_GAP = 36;
const MOST_IN_COLUMN = 16;
const SCREEN = 2.1; // width by height
const MOST_STRETCH = 2.2;
const MANY_LAYERS = 6;
const SWEEPS = 12;
const PASSES = 10;
const PASSES_UP_TO = 80; // beyond, edges are too many to be followed one by one anyway
const PASS = "\u0000";
const PASS_HEIGHT = 20;
const MOST_IN_RING = 30;
const TANGLE_BACK = 0.12;
const TANGLE_EDGES = 4;
const IDLE_TOP = 90;

/** Where everything is: `boxes` by node, {x, y, layer, idle}, and `bends` by edge, where it passes between boxes. */
export function layout(ids, edges) {
  const nodes = [...ids].sort();
  const links = neighbours(nodes, edges);
  const connected = nodes.filter((id) => links.out.get(id).size || links.in.get(id).size);
  const linked = new Set(connected);
  const order = sequence(connected, links);
  if (isTangle(order, links)) return ring(order, nodes.filter((id) => !linked.has(id)));
  const rank = ranksOf(order, links);
  const passes = connected.length <= PASSES_UP_TO ? addPasses(rank, links) : new Map();
  const layers = [];
  for (const [id, number] of rank) (layers[number] ??= []).push(id);
  const places = placed(ordered(layers.filter(Boolean), links), links);
  const boxes = new Map(connected.map((id) => [id, places.get(id)]));
  placeIdle(nodes.filter((id) => !linked.has(id)), boxes);
  const bends = new Map([...passes].map(([edge, points]) => [edge, points.map((id) => places.get(id))]));
  return { boxes, bends };
}

/** What is new is placed; all others stay where they are. */
export function extend(before, ids, edges) {
  const fresh = layout(ids, edges);
  const boxes = new Map();
  const taken = [];
  for (const id of ids) {
    const old = before.boxes.get(id);
    if (old && (!old.idle || fresh.boxes.get(id).idle)) {
      boxes.set(id, old);
      taken.push(old);
    }
  }
  for (const id of [...ids].sort()) {
    if (boxes.has(id)) continue;
    const spot = free(fresh.boxes.get(id), taken);
    boxes.set(id, spot);
    taken.push(spot);
  }
  return { boxes, bends: before.bends, center: before.center };
}

function free(wanted, taken) {
  for (let step = 0; ; step += 1) {
    const offset = Math.ceil(step / 2) * (HEIGHT + GAP_Y) * (step % 2 ? 1 : -1);
    const spot = { ...wanted, y: wanted.y + offset };
    if (!taken.some((each) => Math.abs(each.x - spot.x) < WIDTH + 12 && Math.abs(each.y - spot.y) < HEIGHT + 10)) return spot;
  }
}

function neighbours(nodes, edges) {
  const links = { out: new Map(), in: new Map() };
  for (const id of nodes) {
    links.out.set(id, new Set());
    links.in.set(id, new Set());
  }
  for (const { source, target } of edges) {
    if (source === target || !links.out.has(source) || !links.in.has(target)) continue;
    links.out.get(source).add(target);
    links.in.get(target).add(source);
  }
  return links;
}

/** An order in which few edges lead back: sinks to the end, sources to the front, else who asks more than it is asked
    (Eades, Lin and Smyth, 1993). */
function sequence(nodes, links) {
  const rest = new Set(nodes);
  const degree = (side, id) => [...links[side].get(id)].filter((each) => each !== id && rest.has(each)).length;
  const front = [];
  const end = [];
  const take = (id, list) => rest.delete(id) && list.push(id);
  while (rest.size) {
    const before = rest.size;
    for (const id of [...rest]) if (degree("out", id) === 0) take(id, end);
    for (const id of [...rest]) if (degree("in", id) === 0) take(id, front);
    if (rest.size !== before) continue;
    let best = null;
    for (const id of rest) {
      const surplus = degree("out", id) - degree("in", id);
      if (best === null || surplus > best.surplus) best = { id, surplus };
    }
    take(best.id, front);
  }
  return [...front, ...end.reverse()];
}

function ranksOf(order, links) {
  const roots = order.filter((id) => links.in.get(id).size === 0);
  const number = new Map(order.map((id, place) => [id, place]));
  const rank = new Map(order.map((id) => [id, 0]));
  for (const id of order) {
    for (const next of links.out.get(id)) {
      if (number.get(next) > number.get(id)) rank.set(next, Math.max(rank.get(next), rank.get(id) + 1));
    }
  }
  // Who only asks stands right before the first that it asks.
  for (const id of roots) {
    const asked = [...links.out.get(id)].map((next) => rank.get(next));
    if (asked.length) rank.set(id, Math.max(0, Math.min(...asked) - 1));
  }
  return rank;
}

function isTangle(order, links) {
  const number = new Map(order.map((id, place) => [id, place]));
  let all = 0;
  let back = 0;
  for (const id of order) {
    for (const next of links.out.get(id)) {
      all += 1;
      if (number.get(next) < number.get(id)) back += 1;
    }
  }
  return order.length >= 5 && order.length <= MOST_IN_RING && (back > TANGLE_BACK * all || all > TANGLE_EDGES * order.length);
}

function ring(order, idle) {
  const across = Math.max(WIDTH * 1.4, (order.length * (WIDTH + 40)) / (2 * Math.PI) + WIDTH * 0.35);
  const center = { x: across, y: across * 0.58 };
  const boxes = new Map();
  order.forEach((id, place) => {
    const angle = (2 * Math.PI * place) / order.length - Math.PI;
    boxes.set(id, { x: center.x + across * Math.cos(angle) - WIDTH / 2, y: center.y + center.y * Math.sin(angle) - HEIGHT / 2, layer: 0, idle: false });
  });
  placeIdle(idle, boxes);
  return { boxes, bends: new Map(), center };
}

/** Long edges get a place in each layer that they pass, so that they go around the boxes there. */
function addPasses(rank, links) {
  const passes = new Map();
  for (const source of [...rank.keys()]) {
    for (const target of [...links.out.get(source)]) {
      if (rank.get(target) - rank.get(source) < 2) continue;
      const points = [];
      let last = source;
      links.out.get(source).delete(target);
      links.in.get(target).delete(source);
      for (let layer = rank.get(source) + 1; layer < rank.get(target); layer += 1) {
        const id = `${PASS}${source}>${target}>${layer}`;
        rank.set(id, layer);
        links.out.get(last).add(id);
        links.in.set(id, new Set([last]));
        links.out.set(id, new Set());
        points.push(id);
        last = id;
      }
      links.out.get(last).add(target);
      links.in.get(target).add(last);
      passes.set(`${source}>${target}`, points);
    }
  }
  return passes;
}

function ordered(layers, links) {
  const index = new Map();
  const number = (layer) => layer.forEach((id, place) => index.set(id, place / Math.max(1, layer.length - 1)));
  layers.forEach(number);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const downward = sweep % 2 === 0;
    const side = downward ? links.in : links.out;
    for (const layer of downward ? layers : [...layers].reverse()) {
      const wanted = new Map(layer.map((id) => [id, mean([...side.get(id)].map((each) => index.get(each)), index.get(id))]));
      layer.sort((one, other) => wanted.get(one) - wanted.get(other) || (one < other ? -1 : 1));
      number(layer);
    }
  }
  return layers;
}

function placed(layers, links) {
  const columns = [];
  const all = layers.reduce((sum, layer) => sum + layer.length, 0);
  const most = Math.max(MOST_IN_COLUMN, Math.ceil(Math.sqrt(all * 3.2)));
  const gap = all > PASSES_UP_TO || layers.length > MANY_LAYERS ? GAP_X * 0.7 : GAP_X;
  let x = 0;
  layers.forEach((layer, number) => {
    const parts = Math.ceil(layer.length / most);
    const size = Math.ceil(layer.length / parts);
    for (let part = 0; part < parts; part += 1) {
      columns.push({ x, layer: number, ids: layer.slice(part * size, (part + 1) * size) });
      x += WIDTH + (part === parts - 1 ? gap : SUBCOLUMN_GAP);
    }
  });
  const y = new Map();
  for (const { ids } of columns) spread(ids, ids.map(() => 0)).forEach((value, place) => y.set(ids[place], value));
  const middle = y.size ? mean([...y.values()], 0) : 0;
  for (let pass = 0; pass < PASSES; pass += 1) {
    for (const { ids } of pass % 2 ? [...columns].reverse() : columns) {
      const wish = ids.map((id) => {
        const around = [...links.in.get(id), ...links.out.get(id)].map((each) => y.get(each));
        return around.length ? 0.9 * mean(around, 0) + 0.1 * middle : y.get(id);
      });
      spread(ids, wish).forEach((value, place) => y.set(ids[place], value));
    }
  }
  // A flat picture is pulled apart, to the shape of a screen: there is more room between the edges.
  const heights = [...y.values()];
  const tallness = Math.max(...heights) - Math.min(...heights) + HEIGHT;
  const stretch = Math.min(MOST_STRETCH, Math.max(1, x / SCREEN / tallness));
  const positions = new Map();
  for (const { x: left, layer, ids } of columns) {
    for (const id of ids) positions.set(id, { x: left, y: Math.round(y.get(id) * stretch), layer, idle: false });
  }
  return positions;
}

/** The nearest heights to those wished for, in order and apart: neighbours that collide share their mean. */
function spread(ids, wish) {
  const offsets = [];
  ids.forEach((id, place) => offsets.push(place ? offsets[place - 1] + (tall(ids[place - 1]) + tall(id)) / 2 + GAP_Y : 0));
  const blocks = [];
  wish.forEach((value, place) => {
    let block = { sum: value - offsets[place], size: 1 };
    while (blocks.length && blocks[blocks.length - 1].sum / blocks[blocks.length - 1].size > block.sum / block.size) {
      const before = blocks.pop();
      block = { sum: before.sum + block.sum, size: before.size + block.size };
    }
    blocks.push(block);
  });
  const result = [];
  for (const { sum, size } of blocks) {
    for (let each = 0; each < size; each += 1) result.push(sum / size + offsets[result.length]);
  }
  return result;
}

function placeIdle(idle, positions) {
  const all = [...positions.values()];
  const left = all.length ? Math.min(...all.map((each) => each.x)) : 0;
  const right = all.length ? Math.max(...all.map((each) => each.x)) + WIDTH : 0;
  const bottom = all.length ? Math.max(...all.map((each) => each.y)) + HEIGHT + IDLE_TOP : 0;
  const step = WIDTH + SUBCOLUMN_GAP;
  const fitting = Math.floor((right - left + SUBCOLUMN_GAP) / step);
  const columns = Math.max(fitting, Math.ceil(Math.sqrt(idle.length * 0.6)), 1);
  idle.forEach((id, place) => {
    const row = Math.floor(place / columns);
    positions.set(id, { x: left + (place % columns) * step, y: bottom + row * (HEIGHT + GAP_Y), layer: -1, idle: true });
  });
}

const tall = (id) => (id.startsWith(PASS) ? PASS_HEIGHT : HEIGHT);
const mean = (values, otherwise) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : otherwise);
