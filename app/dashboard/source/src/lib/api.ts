// Calls /v1 with the key of who signed in.

export class ApiProblem extends Error {
  constructor(
    readonly status: number,
    readonly code: string | null,
    readonly param: string | null,
    message: string,
  ) {
    super(message);
  }
}

export type Query = Record<string, string | number | boolean | string[] | null | undefined>;

export class Api {
  /** `refused` hears of a key that is no longer taken, with the reason. */
  constructor(
    readonly key: string,
    private readonly refused: (reason: string) => void = () => undefined,
  ) {}

  async request(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = { Authorization: `Bearer ${this.key}`, ...init.headers };
    const response = await reached(fetch(`/v1${path}`, { ...init, headers, cache: "no-store" }));
    if (response.ok) return response;
    throw this.noticed(await problemOf(response));
  }

  async get<Out>(path: string, query: Query = {}, signal?: AbortSignal): Promise<Out> {
    const response = await this.request(path + search(query), { signal: signal ?? null });
    return response.json() as Promise<Out>;
  }

  async text(path: string): Promise<string> {
    return (await this.request(path)).text();
  }

  async post<Out>(path: string, body?: object, query: Query = {}): Promise<Out> {
    const response = await this.request(path + search(query), {
      method: "POST",
      ...(body ? { body: JSON.stringify(body) } : {}),
      headers: body ? { "Content-Type": "application/json" } : {},
    });
    return response.json() as Promise<Out>;
  }

  async delete(path: string): Promise<void> {
    await this.request(path, { method: "DELETE" });
  }

  /** Send a form and say how many bytes have left; fetch cannot tell, XMLHttpRequest can. */
  form<Out>(path: string, form: FormData, sent: (bytes: number) => void): Promise<Out> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", `/v1${path}`);
      request.setRequestHeader("Authorization", `Bearer ${this.key}`);
      request.upload.onprogress = (event) => sent(event.loaded);
      request.onerror = () => reject(unreachable());
      request.onload = () => {
        if (request.status < 300) resolve(JSON.parse(request.responseText) as Out);
        else reject(this.noticed(problemFrom(request.status, request.responseText)));
      };
      request.send(form);
    });
  }

  private noticed(problem: ApiProblem): ApiProblem {
    if (problem.status === 401) this.refused(problem.message);
    return problem;
  }
}

export function search(query: Query): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined) continue;
    for (const each of Array.isArray(value) ? value : [value]) parameters.append(name, `${each}`);
  }
  const written = parameters.toString();
  return written && `?${written}`;
}

/** Say what went wrong in words that can be shown. */
export function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function isMissing(error: unknown): boolean {
  return error instanceof ApiProblem && error.status === 404;
}

async function reached(answer: Promise<Response>): Promise<Response> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw unreachable();
  }
}

function unreachable(): ApiProblem {
  return new ApiProblem(0, "unreachable", null, "The server does not answer. Is it running?");
}

async function problemOf(response: Response): Promise<ApiProblem> {
  return problemFrom(response.status, await response.text());
}

function problemFrom(status: number, body: string): ApiProblem {
  try {
    const { error } = JSON.parse(body) as {
      error: { message: string; code: string | null; param: string | null };
    };
    return new ApiProblem(status, error.code, error.param, error.message);
  } catch {
    return new ApiProblem(status, null, null, `The server answered ${status}.`);
  }
}
