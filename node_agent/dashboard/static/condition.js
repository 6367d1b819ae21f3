// How good the picture is: live, without an agent, old, or cut off, and why.  Pure.

import { shown } from "/static/dom.js";
import { duration, plural } from "/static/format.js";

const SILENT = 4; // without news for so many intervals the picture is old
const NAMED = 3; // agents that are named; the others are counted

/** `answer` is the last one, with `at` when it came and `lost` when the next did not; `now` is in milliseconds, as `at`. */
export function conditionOf(answer, mesh, now) {
  const old = answer?.mesh ? answer.age_s + (now - answer.at) / 1000 : null;
  if (answer?.lost) {
    const why = `The dashboard's own server: ${answer.lost}. What you see is what was last known.`;
    return { state: "lost", text: old === null ? "not connected" : `stopped, ${duration(old)} old`, why };
  }
  if (!mesh) {
    return answer?.error ? { state: "lost", text: "no answer", why: answer.error } : { state: "waiting", text: "connecting", why: "" };
  }
  if (answer.error || old > SILENT * answer.interval_s) {
    return { state: "stale", text: `stale, ${duration(old)} old`, why: answer.error ?? "The agent is slow to answer." };
  }
  const missing = mesh.agents.filter((agent) => agent.error && agent.needed);
  if (missing.length) {
    const named = missing.slice(0, NAMED).map((agent) => `${shown(agent.node)}: ${shown(agent.error)}`);
    if (missing.length > NAMED) named.push(`and ${missing.length - NAMED} more`);
    return { state: "partial", text: `live, without ${plural(missing.length, "agent")}`, why: named.join(" \u00b7 ") };
  }
  return { state: "live", text: "live", why: "" };
}
