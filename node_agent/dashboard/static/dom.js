// Elements without markup: names and details come from users, so they only ever become text nodes and
// attribute values.  Nothing in this page parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** What cannot be seen, or turns the direction of what follows, is written as its number. */
export function shown(value) {
  if (value === null || value === undefined) return "";
  return String(value).replace(UNPRINTABLE, (sign) => `\u27e8${sign.codePointAt(0).toString(16).padStart(4, "0")}\u27e9`);
}

/** At most `most` characters, the middle left out. */
export function short(value, most) {
  const text = [...shown(value)];
  if (text.length <= most) return text.join("");
  const head = Math.ceil((most - 1) * 0.6);
  return `${text.slice(0, head).join("")}\u2026${text.slice(text.length - (most - 1 - head)).join("")}`;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : shown(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(shown(child)));
  }
  return element;
}

export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

/** Write only what differs: an unchanged text is no news to a screen reader. */
export function setText(element, value) {
  const text = shown(value);
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else {
    const text = value === true ? "" : shown(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}
