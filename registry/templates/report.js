"use strict";
// Tables that sort and filter. What is shown of a `.linked` one is in the page's address: a link gives the same view, Back the one before.
const slug = (text) => text.trim().toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "");
const comparing = /^([a-z_/]+)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)$/;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const keys = heads.map((head) => slug(head.textContent));
  const block = table.closest(".table");
  const linked = block.classList.contains("linked");
  const view = { q: "", sort: "", facets: {} };

  const text = (row, column) => (row.cells[column].firstElementChild ?? row.cells[column]).textContent.trim();
  const value = (row, column) => {
    const own = row.cells[column].dataset.v ?? text(row, column);
    return own === "" || Number.isNaN(Number(own)) ? own : Number(own);
  };
  const compare = (a, b, direction) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    return direction * order;
  };
  const holds = (row, word) => {
    const [, name, sign, number] = comparing.exec(word) ?? [];
    const column = name ? keys.findIndex((key) => key.startsWith(slug(name))) : -1;
    if (column < 0) return row.lower.includes(word);
    const own = value(row, column);
    if (typeof own !== "number") return false;
    const [low, high] = [own < Number(number), own > Number(number)];
    return { "<": low, ">": high, "<=": !high, ">=": !low, "=": !low && !high }[sign];
  };

  let sorted = "";
  const draw = () => {
    if (view.sort !== sorted) {
      const column = keys.indexOf(view.sort.replace(/^-/, ""));
      const direction = view.sort.startsWith("-") ? -1 : 1;
      heads.forEach((head, place) => {
        if (place === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      body.append(...(column < 0 ? rows : rows.toSorted((a, b) => compare(value(a, column), value(b, column), direction))));
      sorted = view.sort;
    }
    if (!input) return;
    const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = Object.entries(view.facets).filter(([, wanted]) => wanted);
    let shown = 0;
    for (const row of rows) {
      row.lower ??= row.textContent.toLowerCase();
      const fits = chosen.every(([key, wanted]) => text(row, keys.indexOf(key)) === wanted);
      row.hidden = !(fits && words.every((word) => holds(row, word)));
      shown += !row.hidden;
    }
    const all = !words.length && !chosen.length;
    none.textContent = all && !linked ? "" : shown + " of " + rows.length + " rows";
    if (clear) clear.hidden = all && !view.sort;
  };

  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      view.sort = view.sort === keys[column] ? "-" + keys[column] : keys[column];
      draw();
      remember(true);
    });
  });

  let input, none, clear;
  const selects = {};
  if (linked || rows.length >= 6) {
    const name = table.getAttribute("aria-label");
    input = element("input", { type: "search", placeholder: linked ? "Filter: gqa 10m loss<3.4" : "Filter rows", "aria-label": "Filter the rows of: " + name });
    none = element("p", { class: "none", role: "status" });
    let waiting;
    input.addEventListener("input", () => {
      view.q = input.value;
      draw();
      clearTimeout(waiting);
      waiting = setTimeout(() => remember(false), 200);
    });
    const bar = block.querySelector(".bar");
    const filters = linked ? element("div", { class: "filters", role: "search", "aria-label": name }) : bar;
    if (linked) {
      heads.forEach((head, column) => {
        if (!("facet" in head.dataset)) return;
        const values = [...new Set(rows.map((row) => text(row, column)))].filter(Boolean).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
        if (values.length < 2) return;
        const title = head.textContent.trim();
        const select = element("select", { "aria-label": title }, element("option", { value: "" }, "any " + title));
        select.append(...values.map((one) => element("option", { value: one }, one)));
        select.addEventListener("change", () => { view.facets[keys[column]] = select.value; draw(); remember(true); });
        selects[keys[column]] = select;
        filters.append(select);
      });
      clear = element("button", { type: "button", class: "clear", hidden: "" }, "Clear");
      clear.addEventListener("click", () => { read(""); remember(true); input.focus(); });
    }
    if (linked) {
      filters.prepend(input);
      filters.append(clear);
      bar.after(filters);
      filters.append(none);
    } else {
      filters.append(input);
      block.append(none);
    }
  }

  const address = () => {
    const state = new URLSearchParams();
    if (view.q) state.set("q", view.q);
    for (const [key, wanted] of Object.entries(view.facets)) if (wanted) state.set(key, wanted);
    if (view.sort) state.set("sort", view.sort);
    return "#" + state;
  };
  const remember = (step) => {
    if (!linked || location.hash === address() || (location.hash === "" && address() === "#")) return;
    history[step ? "pushState" : "replaceState"](null, "", address());
  };
  const read = (hash) => {
    const state = new URLSearchParams(hash.replace(/^#/, ""));
    view.q = state.get("q") ?? "";
    view.sort = keys.includes((state.get("sort") ?? "").replace(/^-/, "")) ? state.get("sort") : "";
    input.value = view.q;
    for (const [key, select] of Object.entries(selects)) {
      select.value = state.get(key) ?? "";
      view.facets[key] = select.value;  // nothing, where there is no such option
    }
    draw();
  };
  if (linked) {
    const follow = () => { if (location.hash.length < 2 || location.hash.includes("=")) read(location.hash); };  // else it is a place on the page
    addEventListener("popstate", follow);
    follow();
  }
}
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });
