// Keeps the page as the server says it: puts a view's texts into the places that the attributes of page.html name.
// It makes elements only by copying the templates, and writes only textContent and attributes named there.
"use strict";
(() => {
  const STREAM = "/page/events", LATEST = "/page/view";
  const SILENT_MS = 3500;  // the server tells something each second
  const STUCK_MS = 10_000;
  const POLL_MS = 2000, POLLS = 10;  // so many before the stream is tried again
  const byId = (id) => document.getElementById(id);

  // Returns a function that fills what is bound in an element with a part of the view.
  const scope = (root) => {
    const bound = [];
    const bind = (node, isTop) => {
      const { with: part, each, text, attr } = node.dataset;
      if (part && !isTop) return void bound.push([part, scope(node)]);
      if (text) bound.push([text, (value) => { node.textContent = value; }]);
      for (const pair of attr ? attr.split(" ") : []) {
        const [name, field] = pair.split(":");
        bound.push([field, (value) => {
          if (value === false) node.removeAttribute(name);
          else node.setAttribute(name, value === true ? "" : value);
        }]);
      }
      if (each) return void bound.push([each, list(node)]);
      for (const child of node.children) bind(child, false);
    };
    bind(root, true);
    let shown = {};
    return (values) => {
      for (const [field, set] of bound) if (values[field] !== shown[field]) set(values[field]);
      shown = values;
    };
  };

  const list = (node) => {
    const template = node.firstElementChild;
    const made = (row) => ({ row, fill: scope(row) });
    const keyed = ([...there], key) => new Map(there.map((row, place) => [key(row, place), made(row)]));
    let rows = keyed([...node.children].slice(1), (row, place) => row.dataset.key ?? String(place));
    return (items) => {
      const left = rows;
      rows = new Map();
      items.forEach((item, place) => {
        const key = item.key ?? String(place);
        const one = left.get(key) ?? made(template.content.firstElementChild.cloneNode(true));
        left.delete(key);
        rows.set(key, one);
        one.fill(item);
        if (node.children[place + 1] !== one.row) node.insertBefore(one.row, node.children[place + 1] ?? null);
      });
      for (const { row } of left.values()) row.remove();
    };
  };

  // JSON merge patch (RFC 7396), of which the server needs no deletions.
  const merged = (old, patch) => {
    if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
    const whole = { ...old };
    for (const [field, value] of Object.entries(patch)) whole[field] = merged(whole[field], value);
    return whole;
  };

  // What the server has told, and since when it has not.
  const fill = scope(document.documentElement);
  let view = null, heard = performance.now();
  const hear = (patch) => {
    const time = chosen === null ? null : timeOf(readouts()[chosen]);
    view = merged(view, patch);
    if (view.build !== document.body.dataset.build) return void location.reload();
    heard = performance.now();
    fill(view);
    const place = time === null ? -1 : readouts().findIndex((text) => timeOf(text) === time);
    read(place < 0 ? null : place);  // the same window, which has moved at the end of another
    live();
  };
  const live = () => {
    const isLost = performance.now() - heard > SILENT_MS;
    const state = isLost ? "lost" : view ? "live" : "";
    if (document.body.dataset.stream === state) return;
    document.body.dataset.stream = state;
    byId("live").textContent = isLost ? "as of" : "live";
    byId("lost").textContent = isLost
      ? `Nothing heard from idagg since ${document.querySelector(".live time").textContent} UTC: this is what it last `
        + "told, and its counts may have gone on. Trying again."
      : "";
  };

  let source = null, polls = 0, tried = 0;
  const listen = () => {
    source?.close();
    tried = performance.now();
    source = new EventSource(STREAM);
    source.onmessage = (event) => hear(JSON.parse(event.data));
    // Where it only waits to try again, the browser does so itself.
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) { source = null; poll(); } };
  };
  const poll = async () => {
    try {
      const answer = await fetch(LATEST, { cache: "no-store" });
      if (answer.ok) hear(await answer.json());
    } catch { /* live() tells */ }
    polls = (polls + 1) % POLLS;
    setTimeout(polls ? poll : listen, POLL_MS);
  };

  // The plot, read by pointer and by keys.
  const plot = byId("plot"), readout = byId("readout"), idle = readout.textContent;
  const cursors = plot.querySelectorAll(".cursor");
  const timeOf = (text) => text.slice(0, text.indexOf(": "));
  const readouts = () => view ? [...view.plot.readouts, view.plot.current_readout] : [];
  let chosen = null;
  const read = (place) => {
    chosen = place;
    for (const cursor of cursors) cursor.setAttribute("x", place === null ? -20 : place * 10);
    const text = place === null ? idle : readouts()[place];
    if (readout.textContent !== text) readout.textContent = text;
  };
  const point = (event) => {
    const { left, width } = plot.querySelector("svg").getBoundingClientRect();
    const places = readouts().length;
    const place = Math.floor((event.clientX - left) / width * places);
    read(place >= 0 && place < places ? place : null);
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", () => { if (document.activeElement !== plot) read(null); });
  plot.addEventListener("blur", () => read(null));
  plot.addEventListener("keydown", (event) => {
    if (!view || event.ctrlKey || event.altKey || event.metaKey) return;
    const last = readouts().length - 1, at = chosen ?? last + 1;
    const place = {
      ArrowLeft: at - 1, ArrowRight: chosen === null ? last : at + 1, PageUp: at - 10, PageDown: at + 10,
      Home: 0, End: last, Escape: null,
    }[event.key];
    if (place === undefined) return;
    event.preventDefault();
    read(place === null ? null : Math.min(Math.max(place, 0), last));
  });

  setInterval(() => {
    live();
    // A stream can be open and dead: the computer has slept, or a firewall has forgotten the connection.
    if (source && performance.now() - Math.max(heard, tried) > STUCK_MS) listen();
  }, 500);
  listen();
})();
