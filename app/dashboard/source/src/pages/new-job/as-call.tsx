import type { Fields } from "../../lib/types";
import { Code } from "../../ui/code";

/** The same as a call, to put into a script. */
export function AsCall({ path, body }: { path: string; body: Fields }) {
  const text = `curl ${location.origin}/v1${path} \\
  -H "Authorization: Bearer $BASIN_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`;
  return (
    <details>
      <summary>The same as a call</summary>
      <Code text={text} what="the call" />
    </details>
  );
}
