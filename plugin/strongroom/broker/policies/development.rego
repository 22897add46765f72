# development: the simulated TEE, and nothing else. For demonstrations and tests.
#
# What this does NOT check: anything about hardware, for there is none, and so no revocation either. Whoever holds the development
# key of the simulated TEE can open every archive at a broker with this policy. It refuses real TEEs, so
# that it cannot stay in place by mistake when the first real machine arrives.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin in {"resource", "strongroom"}
	count(input.submods) == 1
	input.submods.cpu0["ear.veraison.annotated-evidence"].simulated
	not input.submods.cpu0["ear.status"] in {"contraindicated", "none"}
}
