// Light, dark, or what the system says.  What was chosen stays in this browser.

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const KEY = "ringfence-theme";

function stored() {
  try {
    const value = localStorage.getItem(KEY);
    return value in NEXT ? value : "auto";
  } catch {
    return "auto"; // a browser that keeps nothing
  }
}

export function startTheme(button) {
  let theme = stored();
  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // for this page only, then
    }
    apply();
  });
  apply();
}
