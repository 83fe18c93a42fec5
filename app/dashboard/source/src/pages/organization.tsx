import { useRefusal, useSession } from "../lib/session";
import { Notice } from "../ui/notice";
import { Page } from "../ui/page";
import { AuditLogView } from "./organization/audit";
import { Keys } from "./organization/keys";
import { UsageView } from "./organization/usage";

export function OrganizationPage() {
  const { self } = useSession();
  const refusal = useRefusal("admin");
  return (
    <Page title="Keys & usage" above={`${self.organization.name} (${self.organization.id})`}>
      <UsageView admin={!refusal} />
      {refusal && (
        <Notice kind="info" title="Keys, limits and the audit log are for administrators">
          <p>{refusal}</p>
        </Notice>
      )}
      {!refusal && <Keys />}
      {!refusal && <AuditLogView />}
    </Page>
  );
}
