# hardware-only: a genuine, up-to-date, non-debug TEE of a kind that the appraisal policy names.
#
# Asks, for every submodule, that its chain was looked up in current revocation lists, or that its vendor
# publishes none: a device whose list is missing or stale gets no key.
#
# What this does NOT check: which software runs in the TEE. No measurement is compared, so any
# guest image that anybody starts on genuine hardware gets the key. It does not ask for a GPU, and
# where GPUs are attested it does not show that they sit in the same machine as the CPU.
# Use it to learn, or where the appraisal policy itself pins measurements; else take `measured`.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin in {"resource", "strongroom"}
	input.submods.cpu0
	every name, submod in input.submods {
		genuine(name, submod)
	}
}

# The software TEEs prove nothing about hardware, whatever their appraisal says.
genuine(name, submod) if {
	vector := submod["ear.trustworthiness-vector"]
	affirming(vector.hardware)
	submod["strongroom.revocation"] in {"judged", "no-list"}
	evidence := submod["ear.veraison.annotated-evidence"]
	not evidence.sample
	not evidence.sampledevice
	not evidence.simulated
}

affirming(value) if {
	value >= 2
	value <= 31
}
