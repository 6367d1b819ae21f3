// Numbers and times for people.

const PREFIXES = ["", "k", "M", "G", "T", "P"];

export function count(value, gap = "") {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  let step = 0;
  let scaled = value;
  while (Math.abs(scaled) >= 999.5 && step < PREFIXES.length - 1) {
    scaled /= 1000;
    step += 1;
  }
  const size = Math.abs(scaled);
  const digits = (step === 0 && Number.isInteger(scaled)) || size >= 99.5 ? 0 : size >= 0.995 || step > 0 ? 1 : 2;
  return `${trim(scaled.toFixed(digits))}${gap}${PREFIXES[step]}`;
}

export const perSecond = (value) => (value === null || value === undefined ? "\u2013" : `${count(value)}/s`);
export const bytes = (value) => (value === null || value === undefined ? "\u2013" : `${count(value, "\u202f")}B`);
export const bytesPerSecond = (value) => (value === null || value === undefined ? "\u2013" : `${count(value, "\u202f")}B/s`);

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "\u2013";
  const past = seconds < 0;
  let rest = Math.abs(seconds);
  let text;
  if (rest < 1) text = `${Math.round(rest * 1000)} ms`;
  else if (rest < 90) text = `${Math.round(rest)} s`;
  else if (rest < 5400) text = `${Math.round(rest / 60)} min`;
  else if (rest < 172800) text = `${Math.round(rest / 3600)} h`;
  else text = `${Math.round(rest / 86400)} days`;
  return past ? `${text} ago` : text;
}

export function clock(time) {
  const at = new Date(time);
  return Number.isNaN(at.getTime()) ? "\u2013" : at.toLocaleTimeString([], { hour12: false });
}

export const plural = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
