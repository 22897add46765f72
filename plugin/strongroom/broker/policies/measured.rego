# measured: a genuine TEE, and the measured software is software that the appraisal policy lists.
#
# Asks, for every submodule, for the status `affirming`, for an affirming `hardware` claim, and for an
# affirming `executables` claim of the CPU: its measurements equal reference values of the appraisal policy.
# And, for every submodule, that its chain was looked up in current revocation lists, or that its vendor
# publishes none: a device whose list is missing or stale gets no key.
#
# What this does NOT check: that a GPU is there at all, or how many. That what the guest loaded after
# its measured start is what you think, unless the measurement covers it (see the guide on launching).
# That two attested chips sit in one machine. Which archive is asked for, beyond its name.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin in {"resource", "strongroom"}
	affirming(input.submods.cpu0["ear.trustworthiness-vector"].executables)
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
