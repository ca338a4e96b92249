// Reads a JSON list of operators' resources and holds each against its schema: types, required fields, values.
import { readFileSync } from "node:fs";
import * as certManager from "@kubernetes-models/cert-manager/cert-manager.io/v1";
import * as keda from "@kubernetes-models/keda/keda.sh/v1alpha1";
import * as prometheus from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const known = {
  "cert-manager.io/v1": certManager,
  "keda.sh/v1alpha1": keda,
  "monitoring.coreos.com/v1": prometheus,
};

let failures = 0;
for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  const name = `${manifest.apiVersion} ${manifest.kind} ${manifest.metadata?.name}`;
  const Model = known[manifest.apiVersion]?.[manifest.kind];
  try {
    if (!Model) throw new Error("no schema is known");
    new Model(manifest).validate();
  } catch (error) {
    failures += 1;
    console.error(`${name}: ${error.message}`);
  }
}
process.exit(failures ? 1 : 0);
