// Routes live in the fragment, so that the server has one page to serve: #/jobs/ftjob-1?x=log
import { useEffect, useState } from "preact/hooks";

import { type Query, search } from "./api";

export interface Route {
  parts: string[];
  query: URLSearchParams;
}

export function href(path: string, query: Query = {}): string {
  return `#${path}${search(query)}`;
}

export function go(path: string, query: Query = {}): void {
  location.hash = href(path, query);
}

/** Change the query of the page that is shown, without a step in the history. */
export function replaceQuery(query: Query): void {
  const [path = "#/"] = location.hash.split("?");
  history.replaceState(null, "", path + search(query));
}

export function useRoute(): Route {
  const [route, setRoute] = useState(current);
  useEffect(() => {
    const changed = () => setRoute(current());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

function current(): Route {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return {
    parts: path.split("/").filter(Boolean).map(decodeURIComponent),
    query: new URLSearchParams(query),
  };
}
