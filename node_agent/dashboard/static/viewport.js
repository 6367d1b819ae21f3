// Zoom and pan of the graph: by wheel, pinch and drag, and by whoever calls.

const LEAST = 0.12;
const MOST = 2.5;
const MARGIN = 46;
const BELOW = 26; // more below: the legend
const DRAG_FROM_PX = 4;

export class Viewport {
  /** `world` is the group that is moved; `onChange` is told the scale. */
  constructor(surface, world, onChange) {
    this.surface = surface;
    this.world = world;
    this.onChange = onChange;
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.touched = false;
    this.dragged = false;
    this.pointers = new Map();
    surface.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    surface.addEventListener("pointerdown", (event) => this.#down(event));
    surface.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
      surface.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
  }

  get size() {
    return { width: this.surface.clientWidth || 1, height: this.surface.clientHeight || 1 };
  }

  fit(bounds, { most = 1.15 } = {}) {
    const { width, height } = this.size;
    const free = { width: width - 2 * MARGIN, height: height - 2 * MARGIN - BELOW };
    this.scale = clamp(Math.min(free.width / Math.max(bounds.width, 1), free.height / Math.max(bounds.height, 1), most));
    this.x = (width - bounds.width * this.scale) / 2 - bounds.x * this.scale;
    this.y = (height - BELOW - bounds.height * this.scale) / 2 - bounds.y * this.scale;
    this.touched = false;
    this.#apply();
  }

  zoom(factor, at = { x: this.size.width / 2, y: this.size.height / 2 }) {
    const scale = clamp(this.scale * factor);
    this.x = at.x - ((at.x - this.x) * scale) / this.scale;
    this.y = at.y - ((at.y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.touched = true;
    this.#apply();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.touched = true;
    this.#apply();
  }

  /** Bring a box of the world into sight, if it is not: whoever goes by keys must see where. */
  reveal(box) {
    const { width, height } = this.size;
    const left = box.x * this.scale + this.x;
    const top = box.y * this.scale + this.y;
    const right = left + box.width * this.scale;
    const bottom = top + box.height * this.scale;
    const dx = left < MARGIN ? MARGIN - left : right > width - MARGIN ? width - MARGIN - right : 0;
    const dy = top < MARGIN ? MARGIN - top : bottom > height - MARGIN ? height - MARGIN - bottom : 0;
    if (dx || dy) this.pan(dx, dy);
  }

  #apply() {
    this.world.setAttribute("transform", `translate(${this.x.toFixed(1)} ${this.y.toFixed(1)}) scale(${this.scale.toFixed(4)})`);
    this.onChange(this.scale);
  }

  #wheel(event) {
    event.preventDefault();
    const box = this.surface.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-event.deltaY * lines * 0.0016), { x: event.clientX - box.left, y: event.clientY - box.top });
  }

  #down(event) {
    if (event.button !== 0) return;
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.began = { x: event.clientX, y: event.clientY };
    this.dragged = false;
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const box = this.surface.getBoundingClientRect();
      const middle = { x: (now.x + other.x) / 2 - box.left, y: (now.y + other.y) / 2 - box.top };
      this.zoom(distance(now, other) / Math.max(distance(before, other), 1), middle);
      this.dragged = true;
    } else if (this.dragged || distance(now, this.began) > DRAG_FROM_PX) {
      this.dragged = true;
      this.pan(now.x - before.x, now.y - before.y);
    }
    this.pointers.set(event.pointerId, now);
  }
}

const clamp = (scale) => Math.min(MOST, Math.max(LEAST, scale));
const distance = (one, other) => Math.hypot(one.x - other.x, one.y - other.y);
