// The wire, as far as the dashboard reads it: /docs shows every field.

export type Status = "queued" | "running" | "paused" | "succeeded" | "failed" | "cancelled";
export type Scope = "read" | "write" | "admin" | "operator";
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type Fields = Record<string, Json>;

export interface Page<Item> {
  data: Item[];
  has_more: boolean;
}

export interface Self {
  id: string;
  name: string;
  scope: Scope;
  expires_at: number | null;
  organization: { id: string; name: string };
}

export interface Queue {
  position: number;
  ahead: number;
  eta_s: number | null;
  reason: string;
}

export interface Job {
  id: string;
  created_at: number;
  finished_at: number | null;
  estimated_finish: number | null;
  model: string;
  task: string;
  fine_tuned_model: string | null;
  status: Status;
  training_file: string;
  validation_file: string | null;
  result_files: string[];
  trained_tokens: number | null;
  error: { code: string; message: string; param: string | null } | null;
  method: { type: "supervised" | "dpo" | "reinforcement"; reinforcement?: Fields };
  hyperparameters: Fields;
  seed: number;
  integrations: Json[];
  metadata: Record<string, string> | null;
  suffix: string | null;
  priority: number;
  attempt: number;
  progress: { step: number; total_steps: number };
  queue: Queue | null;
  peft: Fields;
  perturbation: Fields;
  training: Fields;
  evaluation: Fields;
  resources: Fields;
  budget: Fields;
}

export interface JobEvent {
  id: string;
  created_at: number;
  level: "info" | "warn" | "error";
  message: string;
  type: string;
  data: Fields;
}

export interface Checkpoint {
  id: string;
  created_at: number;
  fine_tuned_model_checkpoint: string;
  metrics: Record<string, number>;
  step_number: number;
}

export interface Attempt {
  number: number;
  worker: string;
  started_at: number;
  ended_at: number | null;
  first_step: number | null;
  last_step: number | null;
  outcome: string | null;
  reason: string | null;
}

/** A value that is not finite comes by name: NaN, Infinity, -Infinity. */
export type Value = number | string;

/** One action: what was seen before it, and what it was worth; what the algorithm does not know is null. */
export interface Turn {
  observation: string;
  action: string;
  reward: Value;
  valid: boolean;
  episode_advantage: Value;
  step_advantage: Value | null;
  returned: Value | null;
  state: string | null;
  shared: number | null;
}

export interface Rollout {
  id: string;
  step: number;
  index: number;
  reward: Value;
  success: boolean | null;
  failure: string | null;
  turns: Turn[];
}

export interface Rollouts extends Page<Rollout> {
  /** Every step that there are rollouts of, the newest first. */
  steps: { step: number; rewards: Value[] }[];
}

export interface SeriesOut {
  name: string;
  agg: "raw" | "minmax";
  points: Value[][];
}

export interface Finding {
  kind: string;
  severity: "info" | "warn" | "error";
  first_step: number;
  last_step: number;
  metric: string;
  evidence: string;
  advice: string;
}

export interface Report {
  healthy: boolean;
  summary: string;
  findings: Finding[];
}

/** What an argument may be, as JSON schema says it. */
export interface Schema {
  type?: string;
  enum?: Json[];
  const?: Json;
  anyOf?: Schema[];
  default?: Json;
  description?: string;
  minimum?: number;
  maximum?: number;
}

/** What agents can learn in. */
export interface Environment {
  id: string;
  summary: string;
  arguments: { properties?: Record<string, Schema> };
  workers: string[];
}

export interface Model {
  id: string;
  created: number;
  owned_by: string;
  task: string;
}

export interface StoredFile {
  id: string;
  bytes: number;
  created_at: number;
  expires_at: number | null;
  filename: string;
  purpose: string;
  sha256: string;
  rows: number | null;
}

export interface FileFinding {
  code: string;
  severity: "info" | "warn" | "error";
  count: number;
  lines: number[];
  message: string;
}

export interface FileReport {
  rows: number;
  format: string | null;
  tokens: {
    estimated: boolean;
    min: number;
    median: number;
    p95: number;
    max: number;
    max_length: number | null;
    truncated: number;
    dropped: number;
  } | null;
  labels: { label: string; rows: number }[];
  findings: FileFinding[];
}

export interface Worker {
  id: string;
  hostname: string;
  devices: string[];
  free: number;
  started_at: number;
  seen_at: number;
  leases: { job_id: string | null; devices: number; lease_until: number | null }[];
}

export interface Key {
  id: string;
  name: string;
  scope: Scope;
  state: "live" | "expired" | "revoked";
  created_at: number;
  expires_at: number | null;
  previous_until: number | null;
}

export interface Usage {
  month: string;
  jobs: Record<string, number>;
  gpu_seconds: number;
  trained_tokens: number;
  stored_bytes: number;
}

export interface Limits {
  max_running: number | null;
  max_queued: number | null;
  gpu_seconds_per_month: number | null;
  max_stored_bytes: number | null;
  used: { running: number; queued: number; gpu_seconds: number; stored_bytes: number };
  resets_at: number;
}

export interface AuditLog {
  id: string;
  type: string;
  effective_at: number;
  actor: { type: string; api_key: { id: string } | null; ip_address: string | null };
  target: string;
}

/** A change, by dotted names, and what the job would need with it. */
export interface Advice {
  change: Fields;
  expected_bytes: number;
  fits: boolean;
}

export interface Estimate {
  spec: Record<string, Fields>;
  steps: number;
  tokens: { per_epoch: number; total: number };
  memory: { low_bytes: number; expected_bytes: number; high_bytes: number } | null;
  time: { low_s: number; expected_s: number; high_s: number } | null;
  queue: {
    wait_low_s: number | null;
    wait_expected_s: number | null;
    wait_high_s: number | null;
    reason: string;
  };
  basis: { finished_jobs: number; words: string };
  fits: { verdict: boolean; words: string; advice: Advice[] };
  warnings: string[];
}

export interface Spread {
  mean: number;
  low: number | null;
  high: number | null;
  std: number | null;
  n: number;
}

export interface ComparedMethod {
  name: string;
  seeds: number[];
  valid_loss: Spread | null;
  metrics: Record<string, Spread>;
  against_first: {
    difference: number;
    low: number | null;
    high: number | null;
    p_value: number | null;
    adjusted_p_value: number | null;
    significant: boolean;
  } | null;
  cost: {
    seconds: number;
    gpu_seconds: number;
    forward_backward_passes: number;
    peak_memory_bytes: number | null;
    seconds_per_point: number | null;
  } | null;
  sharpness: Record<string, Spread> | null;
  curve: { step: number; mean: number; low: number | null; high: number | null }[];
}

export interface ComparisonSummary {
  id: string;
  method_names: string[];
  name: string | null;
  status: "running" | "succeeded" | "failed" | "cancelled";
  created_at: number;
  progress: { jobs: number; finished: number };
}

export interface Comparison extends ComparisonSummary {
  jobs: { id: string; method: string; seed: number; status: Status }[];
  methods: ComparedMethod[];
  verdict: string | null;
}
