// Pieces that the details and the tables are made of.

import { html, short, shown, svg } from "/static/dom.js";
import { bytes, clock, duration } from "/static/format.js";
import { STATE_WORDS } from "/static/model.js";

export const section = (title, ...children) => html("section", {}, html("h3", {}, title), ...children);

export const name = (text, most = 60) => html("bdi", { title: shown(text).length > most ? text : null }, short(text, most));

export const stateChip = (state) => html("span", { class: "state", "data-state": state }, STATE_WORDS[state] ?? state);

export const link = (text, onclick, label) => html("button", { type: "button", class: "link", onclick, "aria-label": label }, text);

/** A table with a caption that only those hear who do not see the heading above it. */
export function table(caption, columns, rows) {
  return html("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    html("table", {},
      html("caption", { class: "unseen" }, caption),
      html("thead", {}, html("tr", {}, columns.map((column) => html("th", { scope: "col" }, column)))),
      html("tbody", {}, rows.map((cells) => html("tr", {}, cells.map((cell) => html("td", {}, cell)))))));
}

export function facts(pairs) {
  return html("dl", { class: "facts" }, pairs.map(([term, value]) => html("div", {}, html("dt", {}, term), html("dd", {}, value))));
}

export function certificates(rows) {
  if (!rows.length) return html("p", { class: "none" }, "No certificate: nothing here proves an identity.");
  const now = Date.now();
  return html("ul", { class: "cards" }, rows.map((row) => {
    const left = row.not_after ? (Date.parse(row.not_after) - now) / 1000 : null;
    const bad = left === null || left < 0 || Boolean(row.last_error);
    return html("li", { "data-bad": bad ? "yes" : null },
      html("code", {}, name(row.identity, 80)),
      html("p", {}, left === null ? `${shown(row.state)}` : left < 0 ? `expired ${duration(left)}` : `valid for ${duration(left)} more`, ` \u00b7 at ${shown(row.agent)}`),
      row.serial ? html("p", { class: "fine" }, `serial ${short(row.serial, 24)}`) : null,
      row.last_error ? html("p", { class: "wrong" }, row.last_error) : null);
  }));
}

export function records(rows, { withEnds }) {
  if (!rows.length) return html("p", { class: "none" }, "None of those that the agents remember.");
  return html("ol", { class: "cards records" }, rows.slice(0, 40).map((row) => {
    const fine = row.close_reason === "ok";
    return html("li", { "data-bad": fine ? null : row.response_flags === "DENY" ? "yes" : "some" },
      html("p", {}, html("time", { datetime: row.time }, clock(row.time)), " ",
        withEnds ? html("span", {}, name(row.source_workload ?? row.source_address, 34), " \u2192 ", name(row.service ?? row.destination_workload ?? row.original_destination, 34)) : html("span", {}, name(row.source_address, 30), " \u2192 ", name(row.endpoint ?? row.original_destination, 30))),
      html("p", { class: "fine" }, html("strong", {}, shown(row.close_reason)), ` \u00b7 ${duration((row.duration_ms ?? 0) / 1000)} \u00b7 ${bytes(row.received_bytes)} there, ${bytes(row.sent_bytes)} back`, row.connection_security_policy === "mutual_tls" ? " \u00b7 mutual TLS" : row.source_identity && row.destination_identity ? " \u00b7 lane" : " \u00b7 plaintext"),
      row.policy ? html("p", { class: "fine" }, "policy ", name(row.policy, 60)) : null,
      row.dry_run ? html("p", { class: "fine" }, "policies on trial: ", name(row.dry_run, 120)) : null,
      row.trace_id ? html("p", { class: "fine" }, "trace ", html("code", {}, shown(row.trace_id))) : null,
      row.detail ? html("p", { class: fine ? "fine" : "wrong" }, name(row.detail, 240)) : null);
  }));
}

export function live(rows) {
  if (!rows.length) return html("p", { class: "none" }, "None at this moment.");
  return table("Live connections", ["from", "to", "age", "there", "back"],
    rows.slice(0, 40).map((row) => [name(row.source, 26), name(row.endpoint ?? row.original_destination, 26), duration(row.age_s), bytes(row.received_bytes), bytes(row.sent_bytes)]));
}

/** Two minutes of a rate, as a line; `value` takes the number out of a reading. */
export function sparkline(history, value, label) {
  const width = 320;
  const height = 54;
  const values = history.map(value);
  const most = Math.max(...values, 0.001);
  const step = width / Math.max(59, 1);
  const points = values.map((each, place) => [width - (values.length - 1 - place) * step, height - 3 - (each / most) * (height - 8)]);
  if (points.length < 2) return html("p", { class: "none" }, "Measuring\u2026");
  const path = points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("path", { class: "area", d: `${path}L${width} ${height}L${points[0][0].toFixed(1)} ${height}Z` }),
    svg("path", { class: "stroke", d: path }));
}
