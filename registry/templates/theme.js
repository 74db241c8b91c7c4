"use strict";
// Before the page is drawn, so that it does not flash: the theme that this reader chose, or else that of the system.
(() => {
  const root = document.documentElement;
  const themes = ["auto", "light", "dark"];
  let chosen = "auto";
  try { chosen = localStorage.getItem("ablate-theme") ?? "auto"; } catch { /* a browser that keeps nothing */ }
  const apply = () => { if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen; else delete root.dataset.theme; };
  apply();
  addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("button.theme");
    const say = () => { button.textContent = "Theme: " + (themes.includes(chosen) ? chosen : "auto"); };
    button.hidden = false;
    say();
    button.addEventListener("click", () => {
      chosen = themes[(themes.indexOf(chosen) + 1) % themes.length];
      try { localStorage.setItem("ablate-theme", chosen); } catch { /* it holds for this page */ }
      apply();
      say();
    });
  });
})();
