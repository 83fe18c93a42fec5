// What stands around every page: where one can go, and who one is.
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";

import { useSession } from "./lib/session";
import { type Theme, chooseTheme, chosenTheme } from "./lib/theme";
import { Icon } from "./ui/icons";
import { Logo } from "./ui/logo";

const PAGES: [section: string, words: string][] = [
  ["jobs", "Jobs"],
  ["compare", "Compare"],
  ["files", "Files"],
  ["models", "Models"],
  ["workers", "Workers"],
  ["organization", "Keys & usage"],
];

export function Shell({ section, children }: { section: string; children: ComponentChildren }) {
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [section]);
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the page
      </a>
      <header class="top">
        <a class="brand" href="#/jobs">
          <Logo />
          Basin
        </a>
        <button
          type="button"
          class="quiet menu"
          aria-expanded={open}
          aria-controls="nav"
          onClick={() => setOpen(!open)}
        >
          <Icon name="menu" />
          Menu
        </button>
        <div id="nav" class={open ? "nav open" : "nav"}>
          <nav aria-label="Pages">
            {PAGES.map(([name, words]) => (
              <a key={name} href={`#/${name}`} aria-current={name === section ? "page" : undefined}>
                {words}
              </a>
            ))}
          </nav>
          <Who />
        </div>
      </header>
      {children}
    </>
  );
}

function Who() {
  const { self, signOut } = useSession();
  return (
    <div class="who">
      <ThemeChoice />
      <span class="who-name" title={`Key ${self.id} (${self.name})`}>
        {self.organization.name} · {self.scope}
      </span>
      <button type="button" class="quiet" onClick={() => signOut()}>
        Sign out
      </button>
    </div>
  );
}

export function ThemeChoice() {
  const [theme, setTheme] = useState<Theme>(chosenTheme);
  const choose = (chosen: Theme) => {
    chooseTheme(chosen);
    setTheme(chosen);
  };
  return (
    <label class="theme">
      <span class="unseen">Colours</span>
      <select value={theme} onChange={(event) => choose(event.currentTarget.value as Theme)}>
        <option value="auto">Colours: auto</option>
        <option value="light">Colours: light</option>
        <option value="dark">Colours: dark</option>
      </select>
    </label>
  );
}

/** The fragment names the route, so the link cannot move the focus by itself. */
function skip(event: Event): void {
  event.preventDefault();
  document.querySelector<HTMLElement>("#main h1")?.focus();
}
