import { useCallback, useEffect, useRef, useState } from "preact/hooks";

export interface Loaded<Out> {
  data: Out | undefined;
  error: unknown;
  reload: () => void;
}

interface Options {
  /** Milliseconds between two looks; 0 looks once. */
  every?: number;
  /** Whether what is shown stays while other inputs are loaded, as when a list grows. */
  keep?: boolean;
}

const SLOWEST_MS = 30_000;

/** Load something, look again now and then while the page is seen, and keep what is shown meanwhile. */
export function useLoaded<Out>(
  load: ((signal: AbortSignal) => Promise<Out>) | null,
  inputs: readonly unknown[],
  { every = 0, keep = false }: Options = {},
): Loaded<Out> {
  const [state, setState] = useState<{ data?: Out; error?: unknown; of?: string }>({});
  const [again, setAgain] = useState(0);
  const of = JSON.stringify(inputs);
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    let wait = every;
    const look = async () => {
      if (!latest.current) return;
      try {
        const data = await latest.current(stop.signal);
        if (stop.signal.aborted) return;
        setState({ data, of });
        wait = every;
      } catch (error) {
        if (stop.signal.aborted) return;
        setState((before) => ({ ...(keep || before.of === of ? before : {}), error, of }));
        wait = Math.min(wait * 2, SLOWEST_MS);
      }
      if (every) timer = window.setTimeout(whenSeen, wait);
    };
    const whenSeen = () => {
      if (!document.hidden) void look();
      else document.addEventListener("visibilitychange", whenSeen, { once: true, signal: stop.signal });
    };
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [of, again, every, load === null]);
  const reload = useCallback(() => setAgain((times) => times + 1), []);
  const fresh = keep || state.of === of;
  return { data: fresh ? state.data : undefined, error: fresh ? state.error : undefined, reload };
}

/** Run something on a click: says whether it runs, and what went wrong. */
export function useAction(): {
  busy: boolean;
  error: unknown;
  run: (work: () => Promise<unknown>) => void;
  /** Say no more what went wrong. */
  forget: () => void;
} {
  const [state, setState] = useState<{ busy: boolean; error?: unknown }>({ busy: false });
  const run = useCallback((work: () => Promise<unknown>) => {
    setState({ busy: true });
    work().then(
      () => setState({ busy: false }),
      (error: unknown) => setState({ busy: false, error }),
    );
  }, []);
  const forget = useCallback(() => setState(({ busy }) => ({ busy })), []);
  return { busy: state.busy, error: state.error, run, forget };
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · Basin`;
  }, [title]);
}

/** Return a value once it has not changed for a while. */
export function useSettled<Value>(value: Value, ms: number): Value {
  const [settled, setSettled] = useState(value);
  const written = JSON.stringify(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [written, ms]);
  return settled;
}
