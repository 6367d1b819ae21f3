// How edges run between the boxes, and where on them there is room for a label.  Pure.

import { HEIGHT, WIDTH } from "/static/layout.js";

const LABEL = { width: 96, height: 26 };
const LABELS_UP_TO = 36; // beyond, labels are shown one at a time
const ALONG = [0.5, 0.62, 0.38, 0.74, 0.26, 0.84, 0.16];

/** The route of each edge, by id: path data, the middle of its label, and its arrow's point and angle. */
export function routesOf({ boxes, bends, center }, edges) {
  const routes = new Map();
  const outgoing = counted(edges, "source");
  const incoming = counted(edges, "target");
  const taken = edges.length > LABELS_UP_TO ? null : [...boxes.values()].map((box) => ({ x: box.x, y: box.y, width: WIDTH, height: HEIGHT }));
  for (const edge of [...edges].sort((one, other) => (one.id < other.id ? -1 : 1))) {
    const { curves, d, angle, end } = center
      ? chord(boxes.get(edge.source), boxes.get(edge.target), center)
      : routeOf(boxes.get(edge.source), boxes.get(edge.target), bends.get(edge.id) ?? []);
    // Where many leave from one box, or many arrive at one, they are apart at the other end.
    const late = outgoing.get(edge.source) > incoming.get(edge.target);
    routes.set(edge.id, { d, middle: room(curves, late, taken), end: { ...end, angle } });
  }
  return routes;
}

function counted(edges, end) {
  const counts = new Map();
  for (const edge of edges) counts.set(edge[end], (counts.get(edge[end]) ?? 0) + 1);
  return counts;
}

function room(curves, late, taken) {
  const order = late ? [...curves].reverse() : curves;
  const spots = order.flatMap((each) => ALONG.map((share) => at(each, late ? share : 1 - share)));
  if (taken === null) return spots[0];
  const free = spots.find((spot) => !taken.some((box) => overlaps(boxAround(spot), box))) ?? spots[0];
  taken.push(boxAround(free));
  return free;
}

const boxAround = ({ x, y }) => ({ x: x - LABEL.width / 2, y: y - LABEL.height / 2, ...LABEL });
const overlaps = (one, other) => one.x < other.x + other.width && other.x < one.x + one.width && one.y < other.y + other.height && other.y < one.y + one.height;

function routeOf(from, to, bends) {
  if (from === to) {
    const x = from.x + WIDTH / 2;
    const loop = [{ x: x - 34, y: from.y }, { x: x - 46, y: from.y - 58 }, { x: x + 46, y: from.y - 58 }, { x: x + 34, y: from.y - 4 }];
    return { curves: [loop], d: path([loop]), angle: 100, end: loop[3] };
  }
  if (to.x - from.x < WIDTH + 20) return around(from, to);
  const stops = [{ x: from.x + WIDTH, y: from.y + HEIGHT / 2 }];
  for (const bend of bends) stops.push({ x: bend.x, y: bend.y + HEIGHT / 2 }, { x: bend.x + WIDTH, y: bend.y + HEIGHT / 2 });
  const end = { x: to.x, y: to.y + HEIGHT / 2 };
  stops.push({ x: end.x - 7, y: end.y });
  const curves = [];
  for (let place = 0; place + 1 < stops.length; place += 2) {
    const [a, b] = [stops[place], stops[place + 1]];
    const reach = Math.max(30, (b.x - a.x) * 0.48);
    curves.push([a, { x: a.x + reach, y: a.y }, { x: b.x - reach, y: b.y }, b]);
  }
  return { curves, d: path(curves), angle: 0, end };
}

/** From border to border, bent towards the middle of the ring; there and back bend differently. */
function chord(from, to, center) {
  if (from === to || from.idle || to.idle) return routeOf(from, to, []);
  const [a, b] = [middle(from), middle(to)];
  const aside = { x: (b.y - a.y) * 0.07, y: (a.x - b.x) * 0.07 };
  const pull = (point) => ({ x: point.x + (center.x - point.x) * 0.5 + aside.x, y: point.y + (center.y - point.y) * 0.5 + aside.y });
  const [c, d] = [pull(a), pull(b)];
  const end = border(to, d, 7);
  const curve = [border(from, c, 0), c, d, end];
  return { curves: [curve], d: path([curve]), angle: (Math.atan2(end.y - d.y, end.x - d.x) * 180) / Math.PI, end: border(to, d, 0) };
}

const middle = (box) => ({ x: box.x + WIDTH / 2, y: box.y + HEIGHT / 2 });

/** Where the line from the middle of a box towards a point leaves the box, and `more` beyond. */
function border(box, { x, y }, more) {
  const at = middle(box);
  const [dx, dy] = [x - at.x, y - at.y];
  const share = Math.min(WIDTH / 2 / Math.max(Math.abs(dx), 1e-6), HEIGHT / 2 / Math.max(Math.abs(dy), 1e-6), 1);
  const rest = Math.min(more / Math.max(Math.hypot(dx, dy), 1e-6), 1);
  return { x: at.x + dx * (share + rest), y: at.y + dy * (share + rest) };
}

/** Back, or within a column: below both, so that it is not taken for a way forward. */
function around(from, to) {
  const low = Math.max(from.y, to.y) + HEIGHT + 40 + Math.min(60, Math.abs(from.x - to.x) * 0.08);
  const a = { x: from.x + WIDTH * 0.62, y: from.y + HEIGHT };
  const b = { x: to.x + WIDTH * 0.38, y: to.y + HEIGHT };
  const curve = [a, { x: a.x, y: low }, { x: b.x, y: low }, { x: b.x, y: b.y + 7 }];
  return { curves: [curve], d: path([curve]), angle: -90, end: b };
}

const path = (curves) => curves.map(([a, b, c, d], place) => `${place ? "L" : "M"}${point(a)}C${point(b)} ${point(c)} ${point(d)}`).join("");
const point = ({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function at([a, b, c, d], t) {
  const s = 1 - t;
  const along = (axis) => s ** 3 * a[axis] + 3 * s * s * t * b[axis] + 3 * s * t * t * c[axis] + t ** 3 * d[axis];
  return { x: along("x"), y: along("y") };
}
