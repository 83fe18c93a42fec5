import { useEffect, useState } from "preact/hooks";

export type Theme = "auto" | "light" | "dark";

const NAME = "basin.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function chosenTheme(): Theme {
  const kept = localStorage.getItem(NAME);
  return kept === "light" || kept === "dark" ? kept : "auto";
}

export function chooseTheme(theme: Theme): void {
  if (theme === "auto") {
    localStorage.removeItem(NAME);
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem(NAME, theme);
    document.documentElement.dataset.theme = theme;
  }
}

/** Return what changes whenever the page's colours do: what is drawn on a canvas depends on it. */
export function useColours(): string {
  const [colours, setColours] = useState(shown);
  useEffect(() => {
    const changed = () => setColours(shown());
    const observer = new MutationObserver(changed);
    observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    dark.addEventListener("change", changed);
    return () => {
      observer.disconnect();
      dark.removeEventListener("change", changed);
    };
  }, []);
  return colours;
}

function shown(): "light" | "dark" {
  const theme = chosenTheme();
  if (theme !== "auto") return theme;
  return dark.matches ? "dark" : "light";
}

const probe = document.createElement("span");
probe.hidden = true;
document.documentElement.append(probe);

/** Read a colour of the page, such as --ink, as rgb(…): a canvas knows neither var() nor light-dark(). */
export function colour(name: string, opacity = 1): string {
  probe.style.color = `var(${name})`;
  const { color } = getComputedStyle(probe);
  return opacity === 1 ? color : color.replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
}
