import { useLoaded } from "./hooks";
import { useApi } from "./session";
import type { Model } from "./types";

/** The models there are: bases, and what came of earlier jobs. */
export function useModels() {
  const api = useApi();
  return useLoaded((signal) => api.get<{ data: Model[] }>("/models", {}, signal), []);
}

export function isBase(model: Model): boolean {
  return model.owned_by === "operator";
}
