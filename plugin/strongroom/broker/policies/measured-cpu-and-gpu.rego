# measured-cpu-and-gpu: as `measured`, and at least one genuine GPU was attested in the same handshake.
#
# Asks, for every submodule, for the status `affirming` and an affirming `hardware` claim; for the CPU
# also for an affirming `executables` claim; and for a submodule gpu0, which no empty device list has.
# And, for every submodule, that its chain was looked up in current revocation lists, or that its vendor
# publishes none: a device whose list is missing or stale gets no key.
#
# What this does NOT check: how many GPUs there are beyond the first. That the GPU is attached to this
# CPU: its evidence is fresh for this nonce, and it sits somewhere; until devices are bound to a TEE in
# hardware (TDISP) nobody can show more. What the guest loaded after its measured start.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin in {"resource", "strongroom"}
	affirming(input.submods.cpu0["ear.trustworthiness-vector"].executables)
	input.submods.gpu0
	every name, submod in input.submods {
		trusted(submod)
	}
}

trusted(submod) if {
	submod["ear.status"] == "affirming"
	affirming(submod["ear.trustworthiness-vector"].hardware)
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
