import { useState } from "preact/hooks";

import { moment } from "../../lib/format";
import { useAction, useLoaded } from "../../lib/hooks";
import { useApi, useSession } from "../../lib/session";
import type { Key, Page, Scope } from "../../lib/types";
import { Button, ConfirmButton } from "../../ui/buttons";
import { Code } from "../../ui/code";
import { SelectField, TextField } from "../../ui/field";
import { Failure, Notice } from "../../ui/notice";
import { Rows } from "../../ui/rows";

type Secret = Key & { key: string };

export function Keys() {
  const api = useApi();
  const { data, error, reload } = useLoaded(
    (signal) => api.get<Page<Key>>("/organization/keys", {}, signal),
    [],
  );
  const [made, setMade] = useState<Secret | null>(null);
  const show = (secret: Secret) => {
    setMade(secret);
    reload();
  };
  return (
    <section class="card">
      <h2>Keys</h2>
      <Failure error={error} doing="The keys cannot be read" />
      {made && (
        <Notice kind="good" title={`The key “${made.name}”, shown this once`}>
          <Code text={made.key} what="the key" />
          <Button kind="quiet" onClick={() => setMade(null)}>
            I have it
          </Button>
        </Notice>
      )}
      {data && <Table keys={data.data} onSecret={show} onChange={reload} />}
      <NewKey onSecret={show} />
    </section>
  );
}

interface TableProps {
  keys: Key[];
  onSecret: (secret: Secret) => void;
  onChange: () => void;
}

function Table({ keys, onSecret, onChange }: TableProps) {
  return (
    <Rows columns={["Key", "Scope", "State", "Made", "Ends"]} last="Actions">
      {keys.map((key) => (
        <Row key={key.id} row={key} onSecret={onSecret} onChange={onChange} />
      ))}
    </Rows>
  );
}

function Row({
  row,
  onSecret,
  onChange,
}: {
  row: Key;
  onSecret: (secret: Secret) => void;
  onChange: () => void;
}) {
  const { api, self, signOut } = useSession();
  const { busy, error, run } = useAction();
  const mine = row.id === self.id;
  const rotate = () =>
    run(async () =>
      onSecret(await api.post<Secret>(`/organization/keys/${row.id}/rotate`, { grace_minutes: 60 })),
    );
  const revoke = () =>
    run(async () => {
      await api.delete(`/organization/keys/${row.id}`);
      if (mine) signOut("You have revoked the key that you were signed in with.");
      else onChange();
    });
  return (
    <tr>
      <th scope="row">
        <span class="name">{row.name}</span>
        <span class="sub">
          <code>{row.id}</code>
          {mine && " · yours"}
        </span>
      </th>
      <td data-label="Scope">{row.scope}</td>
      <td data-label="State">
        <span class={`state ${row.state}`}>{row.state}</span>
      </td>
      <td data-label="Made">{moment(row.created_at)}</td>
      <td data-label="Ends">{row.expires_at === null ? "never" : moment(row.expires_at)}</td>
      <td class="end">
        {row.state === "live" && (
          <span class="actions">
            <ConfirmButton
              kind="quiet"
              busy={busy}
              label={`Rotate ${row.name}`}
              onClick={rotate}
              question={`Give ${row.name} a new secret? The old one is good for one hour more.`}
              answer="Rotate it"
            >
              Rotate
            </ConfirmButton>
            <ConfirmButton
              kind="quiet"
              busy={busy}
              label={`Revoke ${row.name}`}
              onClick={revoke}
              question={
                mine
                  ? "This is your own key: revoking it signs you out for good. Go on?"
                  : `Revoke ${row.name}? Whoever uses it is refused at once.`
              }
              answer="Revoke it"
            >
              Revoke
            </ConfirmButton>
          </span>
        )}
        <Failure error={error} />
      </td>
    </tr>
  );
}

function NewKey({ onSecret }: { onSecret: (secret: Secret) => void }) {
  const api = useApi();
  const { busy, error, run } = useAction();
  const [name, setName] = useState("");
  const [scope, setScope] = useState<Scope>("write");
  const [days, setDays] = useState("");
  const make = (event: Event) => {
    event.preventDefault();
    run(async () => {
      onSecret(
        await api.post<Secret>("/organization/keys", {
          name,
          scope,
          expires_days: days ? Number(days) : null,
        }),
      );
      setName("");
    });
  };
  return (
    <form class="inline" onSubmit={make} aria-label="New key">
      <TextField label="Name of a new key" value={name} onChange={setName} placeholder="ci" />
      <SelectField
        label="Scope"
        value={scope}
        onChange={(value) => setScope(value as Scope)}
        options={[
          ["read", "read: look"],
          ["write", "write: submit too"],
          ["admin", "admin: manage too"],
        ]}
      />
      <TextField label="Days until it ends" value={days} onChange={setDays} placeholder="never" numeric />
      <button type="submit" disabled={busy || !name.trim()}>
        Make the key
      </button>
      <Failure error={error} doing="No key was made" />
    </form>
  );
}
