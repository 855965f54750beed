"use strict";
// Shows the run's documents. All text is untrusted: it reaches the page as text nodes and attributes only.
(() => {
  const ROW = 50; // height of a list row in px, as in the style sheet
  const MAX_MARKS = 2000; // highlighted hits in one text; more would only cost time
  const { rows, steps, low: LOW } = data("index");
  const $ = (id) => document.getElementById(id);
  const [work, list, rowsBox, viewer, count, search, order, chips] =
    ["work", "list", "rows", "viewer", "count", "search", "order", "chips"].map($);
  const FILTERS = {
    all: ["All", () => true],
    failed: ["Failed", (row) => row.s === "failed" || row.s === "unaccounted"],
    partial: ["Partial", (row) => row.s === "partial"],
    low: ["Low confidence", (row) => row.q > 0],
    blank: ["Blank pages", (row) => row.b > 0],
  };
  const state = { doc: -1, filter: "all", query: "", order: "plan", view: "lines", zoom: false, boxes: true, pin: null };
  let shown = []; // row numbers that pass filter and search, in order
  let hit = null; // RegExp of the query
  let observer = null;
  const texts = []; // text of each document as searched, made at the first search

  function data(id) {
    const node = document.getElementById(id);
    return node && JSON.parse(node.textContent);
  }

  function h(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name.startsWith("aria-")) node.setAttribute(name, value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const number = (value) => value.toLocaleString("en");
  const level = (c) => (c === null || c === undefined ? "na" : c >= 0.9 ? "hi" : c >= LOW ? "mid" : c >= 0.6 ? "low" : "bad");
  const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

  // --- filter, search, list

  function textOf(k) {
    if (texts[k] === undefined) {
      const row = rows[k];
      const parts = [row.n, row.k || "", row.m || ""];
      for (const n of row.v || []) {
        const page = data(`p${k}.${n}`);
        parts.push(...page.t, page.t.length ? "" : page.md);
      }
      texts[k] = parts.join("\n");
    }
    return texts[k];
  }

  function matcher(query) {
    const words = query.trim().split(/\s+/).map((word) => word.replace(/[\\^$.*+?()[\]{}|\/]/g, "\\$&"));
    return words[0] ? new RegExp(words.join("\\s+"), "giu") : null;
  }

  function refresh() {
    hit = matcher(state.query);
    const wanted = state.filter.startsWith("code:")
      ? (row) => (row.k || row.s) === state.filter.slice(5)
      : FILTERS[state.filter][1];
    shown = [];
    let hits = 0;
    rows.forEach((row, k) => {
      if (!wanted(row)) return;
      if (hit) {
        const found = textOf(k).match(hit);
        if (!found) return;
        hits += found.length;
      }
      shown.push(k);
    });
    if (state.order === "confidence") shown.sort((a, b) => (rows[a].w ?? 2) - (rows[b].w ?? 2));
    if (state.order === "name") shown.sort((a, b) => rows[a].n.localeCompare(rows[b].n, undefined, { numeric: true }));
    count.textContent = (hit ? `${plural(hits, "hit")} in ` : "") + `${number(shown.length)} of ${plural(rows.length, "document")}`;
    for (const chip of chips.children) chip.setAttribute("aria-pressed", chip.dataset.filter === state.filter);
    list.scrollTop = 0;
    drawList();
    if (!shown.includes(state.doc)) select(shown.length ? shown[0] : -1);
    else { drawViewer(); reveal(); }
  }

  // Only the rows in sight exist, so that a list of twenty thousand costs what twenty cost.
  function drawList() {
    rowsBox.style.height = `${shown.length * ROW}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 8);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 8);
    rowsBox.replaceChildren(...shown.slice(first, last).map((k, i) => listRow(k, first + i)));
    if (state.doc >= 0 && document.getElementById(`row${state.doc}`)) list.setAttribute("aria-activedescendant", `row${state.doc}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function listRow(k, position) {
    const row = rows[k];
    const cut = row.n.lastIndexOf("/") + 1;
    const facts = row.p ? [plural(row.p, "page"), row.b ? `${number(row.b)} blank` : null, row.f ? `${number(row.f)} failed` : null] : [row.k];
    const node = h("div", { id: `row${k}`, class: "row", role: "option", title: row.n, "data-k": k, "aria-selected": k === state.doc,
      "aria-posinset": position + 1, "aria-setsize": shown.length },
      h("span", { class: "name" }, h("bdi", {}, ...marked(row.n.slice(cut)))),
      h("span", { class: `badge ${row.s}` }, row.s),
      h("span", { class: "facts" }, facts.filter(Boolean).join(" · ") + (cut ? (facts[0] ? " · " : "") + row.n.slice(0, cut) : "")),
      row.c === undefined ? h("span") : h("span", { class: `confidence ${level(row.w)}`, title: `mean ${row.c}, lowest page ${row.w}` }, row.c.toFixed(2)));
    node.style.top = `${position * ROW}px`;
    return node;
  }

  function reveal() {
    const top = shown.indexOf(state.doc) * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawList();
  }

  function select(k, page = null, line = null) {
    state.doc = k;
    state.pin = page === null ? null : { page, line };
    reveal();
    drawViewer();
    if (window.scrollY > work.offsetTop) window.scrollTo(0, work.offsetTop);
    if (page !== null) goTo(page, line);
    link();
  }

  function step(by) {
    const at = shown.indexOf(state.doc) + by;
    if (at >= 0 && at < shown.length) select(shown[at]);
  }

  // --- one document

  function drawViewer() {
    observer?.disconnect();
    const row = rows[state.doc];
    if (!row) {
      viewer.replaceChildren(h("p", { class: "none" }, rows.length ? "No document passes the filter and the search." : "This run has no documents."));
      return;
    }
    const details = data(`d${state.doc}`) || {};
    const meta = [details.model, details.seconds !== undefined ? `${details.seconds} s` : null,
      details.attempt > 1 ? `attempt ${details.attempt}` : null, details.timestamp?.slice(0, 19).replace("T", " ")];
    const at = shown.indexOf(state.doc);
    const pages = row.v || [];
    viewer.replaceChildren(
      h("div", { class: "head" },
        h("h2", {}, h("bdi", {}, ...marked(row.n)), " ", h("span", { class: `badge ${row.s}` }, row.s)),
        h("div", { class: "tools" },
          pages.length ? h("div", { class: "switch", role: "group", "aria-label": "Text as" }, ...["lines", "markdown"].map((view) =>
            h("button", { type: "button", "aria-pressed": state.view === view, onclick: () => { state.view = view; drawViewer(); } }, view))) : null,
          ...(pages.length ? ["boxes", "zoom"] : []).map((name) =>
            h("button", { type: "button", "aria-pressed": state[name], onclick: () => { state[name] = !state[name]; drawViewer(); } }, name)),
          h("button", { type: "button", "aria-label": "Previous document", disabled: at <= 0, onclick: () => step(-1) }, "‹"),
          h("button", { type: "button", "aria-label": "Next document", disabled: at >= shown.length - 1, onclick: () => step(1) }, "›")),
        h("p", { class: "meta" }, h("bdi", {}, details.source || ""), " ", meta.filter(Boolean).join(" · "))),
      ...(details.warnings || []).map((text) => h("p", { class: "warning" }, text)),
      row.s === "failed" || row.s === "unaccounted" ? failure(row, details) : "",
      row.p > pages.length ? h("p", { class: "notes" }, pages.length
        ? `${number(pages.length)} of this document's ${plural(row.p, "page")} are in this report.`
        : "The pages of this document are not in this report, which shows a sample; its result is in the run's folder.") : "",
      pages.length ? legend() : "",
      ...pages.map((n) => placeholder(n)));
    // A page is built as it comes near and taken down when it is far: a document of a thousand pages stays light.
    observer = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
      if (isIntersecting) build(target);
      else if (target.firstChild) { target.style.minHeight = `${target.offsetHeight}px`; target.replaceChildren(); }
    }), { rootMargin: "1200px 0px" });
    viewer.querySelectorAll(".page").forEach((section) => observer.observe(section));
  }

  function failure(row, details) {
    const step = steps[row.k || row.s] || "";
    return h("div", { class: "failure" },
      h("p", {}, h("code", {}, row.k || row.s), row.m ? " " : null, row.m ? h("span", {}, ...marked(row.m)) : null),
      h("p", {}, h("strong", {}, "What to do: "), ...step.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part))),
      details.traceback ? h("details", {}, h("summary", {}, "Traceback"), h("pre", {}, details.traceback)) : null);
  }

  function legend() {
    const levels = [["hi", "≥ 0.9"], ["mid", `≥ ${LOW}`], ["low", "≥ 0.6"], ["bad", "below"], ["na", "not told"]];
    return h("p", { class: "legend" }, "Confidence: ", ...levels.map(([name, text]) => h("span", { class: name }, text)));
  }

  function placeholder(n) {
    const section = h("section", { class: "page", "data-n": n, "aria-label": `Page ${n}` });
    section.style.minHeight = "70vh";
    return section;
  }

  function build(section) {
    if (section.firstChild) return;
    const n = Number(section.dataset.n);
    const page = data(`p${state.doc}.${n}`);
    const stored = document.getElementById(`i${state.doc}.${n}`);
    const confidences = page.c.filter((c) => c !== null);
    const mean = confidences.length ? confidences.reduce((a, b) => a + b) / confidences.length : null;
    const facts = [page.s === "ok" ? null : page.s, page.t.length ? plural(page.t.length, "line") : null, mean === null ? null : `confidence ${mean.toFixed(3)}`,
      page.w ? `${page.w} × ${page.h} px` : null, page.r ? `turned by ${page.r}°` : null];
    section.style.minHeight = "";
    section.append(
      h("h3", {}, h("a", { href: address(n, null), onclick: (event) => { event.preventDefault(); pin(section, null); } }, `Page ${n}`),
        h("span", {}, facts.filter(Boolean).join(" · "))),
      h("div", { class: "spread" }, sheet(page, stored), writing(page)));
    if (state.pin?.page === n && state.pin.line !== null) mark(section, "pinned", state.pin.line);
    else if (hit) showInText(section, section.querySelector("li mark")?.closest("li").dataset.i);
  }

  function sheet(page, stored) {
    if (!page.w || !page.h || (!stored && !page.p.some(Boolean))) return h("p", { class: "none" }, "No image of this page.");
    const figure = h("figure", { class: `sheet${state.zoom ? " zoom" : ""}${state.boxes ? "" : " bare"}` });
    figure.style.setProperty("--ratio", page.w / page.h);
    figure.style.aspectRatio = `${page.w} / ${page.h}`;
    const overlay = svg("svg", { viewBox: `0 0 ${page.w} ${page.h}`, "aria-hidden": "true" });
    if (stored) {
      const [type, base64] = stored.textContent.split(",", 2);
      figure.append(h("img", { src: `data:${type};base64,${base64}`, alt: `Page ${page.n}`, decoding: "async" }));
    } else {
      figure.classList.add("drawn");
      page.p.forEach((polygon, i) => polygon && overlay.append(drawnText(polygon, page.t[i])));
    }
    page.p.forEach((polygon, i) => {
      if (polygon) overlay.append(svg("polygon", { points: polygon.join(" "), class: `${level(page.c[i])}${muted(page.o[i])}${isHit(page.t[i]) ? " hit" : ""}`, "data-i": i }));
    });
    figure.append(overlay);
    if (!stored) figure.append(h("figcaption", {}, "No image: drawn from the lines."));
    return figure;
  }

  // Along the polygon's upper edge, as high as its left edge is long.
  function drawnText([x0, y0, x1, y1, , , x3, y3], text) {
    const length = Math.hypot(x1 - x0, y1 - y0);
    const height = Math.hypot(x3 - x0, y3 - y0) || 10;
    const turn = (Math.atan2(y1 - y0, x1 - x0) * 180) / Math.PI;
    return svg("text", { transform: `translate(${x0} ${y0}) rotate(${turn || 0})`, y: height * 0.8, "font-size": height * 0.8,
      textLength: length || 1, lengthAdjust: "spacingAndGlyphs" }, text);
  }

  const muted = (role) => (role === "page_header" || role === "page_footer" || role === "page_number" ? " furniture" : "");

  function writing(page) {
    const box = h("div", { class: "writing" });
    if (page.e) box.append(h("p", { class: "failure" }, page.e));
    if (page.s === "blank") box.append(h("p", { class: "none" }, "A blank page."));
    if (page.t.length && state.view === "lines") {
      box.append(h("ol", { class: "lines" }, ...page.t.map((text, i) =>
        h("li", { "data-i": i, tabindex: i ? -1 : 0, class: `${level(page.c[i])}${muted(page.o[i])}` },
          h("span", { class: "t", dir: "auto" }, ...marked(text)),
          page.o[i] ? h("small", {}, page.o[i].replace("_", " ")) : null,
          page.c[i] === null ? null : h("span", { class: "c" }, page.c[i].toFixed(2))))));
    } else if (page.md) box.append(h("pre", { dir: "auto" }, ...marked(page.md)));
    return box;
  }

  function isHit(text) {
    if (!hit) return false;
    hit.lastIndex = 0;
    return hit.test(text);
  }

  function marked(text) {
    if (!hit) return [text];
    const nodes = [];
    let from = 0;
    for (const found of text.matchAll(hit)) {
      nodes.push(text.slice(from, found.index), h("mark", {}, found[0]));
      from = found.index + found[0].length;
      if (nodes.length > MAX_MARKS) break;
    }
    nodes.push(text.slice(from));
    return nodes;
  }

  // --- a line in the image and in the text

  function mark(section, name, i) {
    section.querySelectorAll(`.${name}`).forEach((node) => node.classList.remove(name));
    if (i !== null) section.querySelectorAll(`[data-i="${i}"]`).forEach((node) => node.classList.add(name));
  }

  function pin(section, i) {
    viewer.querySelectorAll(".pinned").forEach((node) => node.classList.remove("pinned"));
    state.pin = { page: Number(section.dataset.n), line: i };
    mark(section, "pinned", i);
    link();
  }

  function showInText(section, i) {
    const item = section.querySelector(`li[data-i="${i}"]`);
    const box = item?.closest(".writing");
    if (!box) return;
    const [a, b] = [item.getBoundingClientRect(), box.getBoundingClientRect()];
    if (a.top < b.top || a.bottom > b.bottom) box.scrollTop += a.top - b.top - box.clientHeight / 2;
  }

  function goTo(page, line) {
    const section = viewer.querySelector(`.page[data-n="${page}"]`);
    if (!section) return;
    build(section);
    section.scrollIntoView();
    if (line === null) return;
    mark(section, "pinned", line);
    showInText(section, line);
    section.querySelector(`polygon[data-i="${line}"]`)?.scrollIntoView({ block: "nearest" });
  }

  function lineAt(event) {
    const node = event.target.closest?.("[data-i]");
    return node && { node, i: Number(node.dataset.i), section: node.closest(".page") };
  }

  viewer.addEventListener("mouseover", (event) => {
    const at = lineAt(event);
    viewer.querySelectorAll(".over").forEach((node) => node.classList.remove("over"));
    if (!at) return;
    mark(at.section, "over", at.i);
    if (at.node.tagName === "polygon") showInText(at.section, at.i);
  });
  viewer.addEventListener("mouseleave", () => viewer.querySelectorAll(".over").forEach((node) => node.classList.remove("over")));
  viewer.addEventListener("click", (event) => {
    const at = lineAt(event);
    if (!at || String(window.getSelection())) return; // text is being selected
    pin(at.section, at.i);
    if (at.node.tagName === "polygon") showInText(at.section, at.i);
    else at.section.querySelector(`polygon[data-i="${at.i}"]`)?.scrollIntoView({ block: "nearest" });
  });
  viewer.addEventListener("focusin", (event) => {
    const at = lineAt(event);
    if (at) mark(at.section, "over", at.i);
  });
  viewer.addEventListener("keydown", (event) => {
    const at = lineAt(event);
    if (!at) return;
    const next = event.key === "ArrowDown" ? at.node.nextElementSibling : event.key === "ArrowUp" ? at.node.previousElementSibling : null;
    if (next) { event.preventDefault(); next.focus(); }
    if (event.key === "Enter") pin(at.section, at.i);
  });

  // --- address, keys, controls

  function address(page, line) {
    const parameters = new URLSearchParams();
    if (state.doc >= 0) parameters.set("doc", rows[state.doc].n);
    if (page !== null && page !== undefined) parameters.set("page", page);
    if (line !== null && line !== undefined) parameters.set("line", line + 1);
    if (state.filter !== "all") parameters.set("show", state.filter);
    if (state.query) parameters.set("q", state.query);
    return `#${parameters}`;
  }

  const link = () => history.replaceState(null, "", address(state.pin?.page, state.pin?.line));

  function open() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    const filter = parameters.get("show") || "all";
    state.filter = Object.hasOwn(FILTERS, filter) || filter.startsWith("code:") ? filter : "all";
    state.query = search.value = parameters.get("q") || "";
    const k = rows.findIndex((row) => row.n === parameters.get("doc"));
    const asked = (name) => (/^\d+$/.test(parameters.get(name) || "") ? Number(parameters.get(name)) : null);
    const [page, line] = [asked("page"), asked("line")];
    state.doc = k;
    refresh();
    if (k >= 0 && shown.includes(k)) select(k, page, page === null || line === null ? null : line - 1);
    if (k >= 0) work.scrollIntoView();
    if (k >= 0 && page !== null) goTo(page, line === null ? null : line - 1);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Escape") { search.value = state.query = ""; search.blur(); refresh(); }
      if (event.key === "Enter") search.blur();
      return;
    }
    if (event.target.tagName === "SELECT") return;
    const act = {
      j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
      "/": () => { search.focus(); search.select(); },
      m: () => { state.view = state.view === "lines" ? "markdown" : "lines"; drawViewer(); },
      z: () => { state.zoom = !state.zoom; drawViewer(); },
      b: () => { state.boxes = !state.boxes; drawViewer(); },
      ...(event.target === list && { ArrowDown: () => step(1), ArrowUp: () => step(-1),
        Home: () => shown.length && select(shown[0]), End: () => shown.length && select(shown[shown.length - 1]) }),
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  let typing = 0;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.query = search.value; refresh(); }, 150);
  });
  order.addEventListener("change", () => { state.order = order.value; refresh(); });
  list.addEventListener("scroll", drawList, { passive: true });
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) select(Number(row.dataset.k));
  });
  const show = (filter) => { state.filter = filter; refresh(); };
  for (const [name, [label, passes]] of Object.entries(FILTERS)) {
    const title = name === "low" ? `Documents with a page whose mean, or more than a tenth of whose lines, is below ${LOW}` : null;
    chips.append(h("button", { type: "button", title, "data-filter": name, onclick: () => show(name) },
      label, " ", h("span", {}, number(rows.filter(passes).length))));
  }
  document.querySelectorAll("[data-code]").forEach((button) => button.addEventListener("click", () => {
    show(`code:${button.dataset.code}`);
    work.scrollIntoView();
  }));
  window.addEventListener("hashchange", open);
  window.addEventListener("resize", drawList);
  new ResizeObserver(() => {  // its chips may take several rows: what sticks below it has to know
    const sticky = getComputedStyle($("bar")).position === "sticky";
    document.documentElement.style.setProperty("--bar", sticky ? `${$("bar").offsetHeight}px` : "0px");
  }).observe($("bar"));

  const notes = $("notes");
  if (notes) work.before(notes);
  $("loading").remove();
  work.hidden = false;
  open();
})();
