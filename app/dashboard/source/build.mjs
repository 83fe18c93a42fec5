// Bundles src/ into ../static: what the API serves, committed so that no user needs node.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "static");

/** Name the sources by what they say; tests/app/test_dashboard.py computes the same. */
function digestOfSources() {
  const names = readdirSync(here, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(here, join(entry.parentPath, entry.name)).replaceAll("\\", "/"))
    .filter((name) => !name.startsWith("node_modules/"))
    .sort();
  const hash = createHash("sha256");
  for (const name of names) {
    hash
      .update(name)
      .update("\0")
      .update(readFileSync(join(here, name)))
      .update("\0");
  }
  return hash.digest("hex");
}

/** Keep the licences of what is bundled beside the bundle, as they ask. */
function notices(names) {
  return names
    .map((name) => {
      const folder = join(here, "node_modules", name);
      const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
      const text = readFileSync(join(folder, "LICENSE"), "utf8").trim();
      return `${name} ${version} (${license})\n\n${text}\n`;
    })
    .join(`\n${"-".repeat(72)}\n\n`);
}

rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.tsx", theme: "src/theme.ts", style: "src/style.css" },
  outdir: target,
  bundle: true,
  minify: true,
  legalComments: "none",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  loader: { ".svg": "text" },
});
const sources = digestOfSources();
const page = readFileSync(join(here, "index.html"), "utf8");
writeFileSync(join(target, "index.html"), page.replaceAll("SOURCES", sources));
writeFileSync(join(target, "logo.svg"), readFileSync(join(here, "src", "logo.svg")));
writeFileSync(join(target, "NOTICES.txt"), notices(["preact", "uplot"]));
console.log(`Built ${target} from ${sources.slice(0, 12)}`);
