import { useCallback, useEffect, useMemo, useState } from "preact/hooks";

import { Api, ApiProblem, wordsOf } from "./lib/api";
import { useRoute } from "./lib/router";
import { type Session, SessionContext, forgetKey, keepKey, keptKey } from "./lib/session";
import type { Self } from "./lib/types";
import { CompareJobs } from "./pages/compare";
import { ComparisonPage } from "./pages/comparison";
import { Files } from "./pages/files";
import { JobPage } from "./pages/job";
import { Jobs } from "./pages/jobs";
import { Models } from "./pages/models";
import { NewComparison } from "./pages/new-comparison";
import { NewJob } from "./pages/new-job";
import { OrganizationPage } from "./pages/organization";
import { SignIn } from "./pages/sign-in";
import { Workers } from "./pages/workers";
import { Shell } from "./shell";
import { Empty, Loading, Page } from "./ui/page";

export function App() {
  const [session, setSession] = useState<Session | null>(null);
  const [reason, setReason] = useState<string | undefined>();
  const [busy, setBusy] = useState(() => keptKey() !== null);
  const signOut = useCallback((why?: string) => {
    forgetKey();
    setSession(null);
    setReason(why);
  }, []);
  const signIn = useCallback(
    async (key: string, remember: boolean | null) => {
      setBusy(true);
      try {
        const self = await new Api(key).get<Self>("/organization/keys/self");
        if (remember !== null) keepKey(key, remember);
        setReason(undefined);
        setSession({ api: new Api(key, signOut), self, signOut });
      } catch (error) {
        if (error instanceof ApiProblem && error.status === 401) forgetKey();
        setReason(wordsOf(error));
      }
      setBusy(false);
    },
    [signOut],
  );
  useEffect(() => {
    const key = keptKey();
    if (key) void signIn(key, null);
  }, [signIn]);
  if (!session && busy && keptKey()) return <Loading />;
  if (!session) return <SignIn reason={reason} busy={busy} onKey={signIn} />;
  return (
    <SessionContext.Provider value={session}>
      <Routed />
    </SessionContext.Provider>
  );
}

function Routed() {
  const { parts, query } = useRoute();
  const [section = "jobs", id] = parts;
  const page = useMemo(() => pageFor(section, id, query), [parts.join("/"), query.toString()]);
  return <Shell section={section}>{page}</Shell>;
}

function pageFor(section: string, id: string | undefined, query: URLSearchParams) {
  switch (section) {
    case "jobs":
      return id ? <JobPage key={id} id={id} /> : <Jobs />;
    case "new":
      return (
        <NewJob
          key={query.toString()}
          clone={query.get("clone")}
          file={query.get("file")}
          model={query.get("model")}
        />
      );
    case "compare":
      if (id === "new") return <NewComparison />;
      return id ? (
        <ComparisonPage key={id} id={id} />
      ) : (
        <CompareJobs asked={query.get("jobs")?.split(",").filter(Boolean) ?? []} />
      );
    case "files":
      return <Files />;
    case "models":
      return <Models />;
    case "workers":
      return <Workers />;
    case "organization":
      return <OrganizationPage />;
    default:
      return (
        <Page title="No such page">
          <Empty title="There is nothing here">
            <p>
              <a href="#/jobs">Go to the jobs</a>
            </p>
          </Empty>
        </Page>
      );
  }
}
