"""Every rule of the conformance list, and what shows that it is kept.

A rule needs vectors that break it, vectors that keep it, or both; behaviour
over time has no vector and names the tests that show it instead.  A test goes
over this table: a rule without evidence fails, and so does evidence for no rule.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``accepts`` and ``rejects`` say which vectors there have to be; ``tests`` are ``file::function``."""

    name: str
    section: str
    says: str
    accepts: bool = False
    rejects: bool = False
    tests: tuple[str, ...] = ()


def _both(name: str, section: str, says: str) -> Rule:
    return Rule(name=name, section=section, says=says, accepts=True, rejects=True)


def _accepts(name: str, section: str, says: str) -> Rule:
    return Rule(name=name, section=section, says=says, accepts=True)


def _rejects(name: str, section: str, says: str) -> Rule:
    return Rule(name=name, section=section, says=says, rejects=True)


def _shown(name: str, section: str, says: str, *tests: str) -> Rule:
    return Rule(name=name, section=section, says=says, tests=tests)


_INTAKE: Final = "tests/unit/ca/authority/test_federation.py"
_POLLING: Final = "tests/stream/ca/test_federation.py"
_ENDPOINT: Final = "tests/stream/ca/test_bundle_endpoint.py"
_FETCHING: Final = "tests/stream/ca/test_bundle_fetching.py"
_ANCHORS: Final = "tests/unit/ca/test_anchors.py"
_HANDSHAKES: Final = "tests/stream/identity/test_handshakes.py"
_WORKLOAD_API: Final = "tests/stream/workload_api/test_x509.py"
_MESH: Final = "tests/mesh/test_federation.py"

RULES: Final = (
    # -- ID ---------------------------------------------------------------------------------------------
    _both("id-form", "SPIFFE-ID 2", "spiffe://<trust domain><path>"),
    _both("id-trust-domain", "SPIFFE-ID 2.1", "the trust domain is not empty, and of a-z 0-9 . - _"),
    _both("id-trust-domain-length", "SPIFFE-ID 2.3", "a trust domain has at most 255 bytes"),
    _rejects("id-no-userinfo", "SPIFFE-ID 2.1", "no user information"),
    _rejects("id-no-port", "SPIFFE-ID 2.1", "no port"),
    _rejects("id-no-query", "SPIFFE-ID 2", "no query"),
    _rejects("id-no-fragment", "SPIFFE-ID 2", "no fragment"),
    _rejects("id-no-percent-encoding", "SPIFFE-ID 2", "no percent-encoding"),
    _both("id-segments", "SPIFFE-ID 2.2", "segments are of A-Z a-z 0-9 . - _"),
    _rejects("id-no-empty-segment", "SPIFFE-ID 2.2", "no empty segment"),
    _rejects("id-no-dot-segment", "SPIFFE-ID 2.2", "no '.' and no '..'"),
    _rejects("id-no-trailing-slash", "SPIFFE-ID 2.2", "no trailing slash"),
    _both("id-length", "SPIFFE-ID 2.3", "2048 bytes are supported, more are not made"),
    # -- leaf -------------------------------------------------------------------------------------------
    _both("leaf-one-uri", "X509-SVID 2", "exactly one URI name"),
    _accepts("leaf-other-names", "X509-SVID 2", "names of other types are allowed"),
    _rejects("leaf-path", "X509-SVID 3.1", "a path that is not the root"),
    _both("leaf-not-ca", "X509-SVID 4.1", "cA false or absent"),
    _both("leaf-key-usage", "X509-SVID 4.3", "key usage present and critical"),
    _rejects("leaf-digital-signature", "X509-SVID 4.3", "digitalSignature set"),
    _rejects("leaf-no-cert-sign", "X509-SVID 4.3", "keyCertSign clear"),
    _rejects("leaf-no-crl-sign", "X509-SVID 4.3", "cRLSign clear"),
    _accepts("leaf-more-usages", "X509-SVID 4.3", "keyEncipherment and keyAgreement are allowed"),
    _both("leaf-purposes", "X509-SVID 4.4", "extended key usage: absent, or serverAuth and clientAuth"),
    _both("leaf-critical-names", "RFC 5280 4.2.1.6", "names are critical under an empty subject"),
    _both("path-validation", "X509-SVID 5.1", "a path by RFC 5280 to a root of the bundle"),
    _both("path-own-bundle", "SPIFFE Federation 4.2", "by the bundle of the leaf's own trust domain only"),
    _both("dates", "RFC 5280 4.1.2.5", "within the validity of every certificate of the path"),
    # -- signing certificates ---------------------------------------------------------------------------
    _rejects("signing-ca", "X509-SVID 4.1", "cA set"),
    _rejects("signing-cert-sign", "X509-SVID 4.3", "keyCertSign set"),
    _accepts("signing-id-optional", "X509-SVID 3.2", "a SPIFFE ID is optional"),
    _rejects("signing-one-id", "X509-SVID 2", "at most one URI name"),
    _rejects("signing-not-a-leaf", "X509-SVID 3.2", "never accepted as a leaf"),
    _both("name-constraints", "X509-SVID 4.2", "URI name constraints are honoured"),
    # -- bundle -----------------------------------------------------------------------------------------
    _both("bundle-json", "TDB 4", "a JWK Set: one JSON object in UTF-8, of bounded size"),
    _both("bundle-keys", "TDB 4.1.3", "'keys' is required; empty trusts nothing"),
    _both("bundle-sequence", "TDB 4.1.1", "a whole number of 64 bits"),
    _shown(
        "bundle-order",
        "TDB 4.1.1",
        "the sequence number goes up, and with every change",
        "tests/unit/ca/test_bundle.py::test_a_higher_sequence_number_or_none_follows",
        "tests/unit/ca/test_bundle.py::test_a_lower_sequence_number_is_refused",
        "tests/unit/ca/test_bundle.py::test_other_keys_under_the_same_number_are_refused",
    ),
    _both("bundle-refresh-hint", "TDB 4.1.2", "whole seconds, five minutes by default"),
    _accepts("bundle-kty", "TDB 4.2.1", "an entry without a known key type is skipped"),
    _accepts("bundle-use", "TDB 4.2.2", "an entry without 'use', or another, or in another case, is skipped"),
    _both("bundle-x5c", "X509-SVID 6.2", "no x5c: skipped; of several only the first; one certificate in base64"),
    _rejects("bundle-x509-no-kid", "X509-SVID 6.1", "an x509-svid key has no 'kid'"),
    _both("bundle-jwt-kid", "JWT-SVID 6.1", "a jwt-svid key has a 'kid' of its own"),
    _both("bundle-key-matches", "RFC 7517 4.7", "the key is that of the certificate"),
    _rejects("bundle-authorities", "X509-SVID 6", "every x509-svid certificate is a signing certificate of the domain"),
    _both("bundle-map", "TDB 5.1", "a map of trust domains, each once, by valid names"),
    _accepts("bundle-map-hint", "TDB 5.1", "refresh hints inside a map are ignored"),
    # -- federation -------------------------------------------------------------------------------------
    _shown(
        "federation-never-merged",
        "SPIFFE Federation 4.2",
        "bundles of different trust domains are never merged",
        f"{_HANDSHAKES}::test_a_root_moved_to_another_trust_domain_no_longer_vouches_for_its_old_one",
        f"{_HANDSHAKES}::test_a_federated_root_that_passes_for_one_of_ours_ends_no_handshake_of_ours",
        f"{_ANCHORS}::test_a_root_with_the_name_and_key_identifier_of_ours_is_left_out",
        f"{_INTAKE}::test_what_is_added_is_trusted_after_our_own_and_what_is_removed_is_not",
        f"{_MESH}::test_the_other_ca_can_not_speak_for_our_workloads",
    ),
    _shown(
        "federation-failed-poll",
        "SPIFFE Federation 6.2",
        "a poll that failed is tried at the next interval; what was in force stays",
        f"{_INTAKE}::test_a_failed_poll_waits_for_the_next_interval",
        f"{_POLLING}::test_a_failed_poll_keeps_the_bundle_and_is_tried_at_the_next_interval",
        f"{_MESH}::test_an_endpoint_that_is_down_changes_nothing_and_is_told",
    ),
    _shown(
        "federation-publish-ahead",
        "SPIFFE Federation 4.1",
        "a new key is published for five refresh hints before it is used",
        "tests/unit/cli/test_ca_wait.py::test_a_root_is_published_for_five_refresh_hints",
        "tests/unit/ca/authority/test_jwt_rotation.py::test_a_key_that_was_prepared_late_is_published_for_several_refresh_hints_first",
        f"{_POLLING}::test_a_new_root_is_fetched_by_others_before_it_is_used",
    ),
    _shown(
        "federation-remove-last",
        "SPIFFE Federation 4.1",
        "a key is removed when no valid SVID of it is left",
        "tests/unit/ca/authority/test_rotation.py::test_an_old_root_stays_until_everything_below_it_has_retired",
        "tests/unit/ca/authority/test_jwt_rotation.py::test_a_key_is_forgotten_when_its_last_token_can_not_be_accepted_any_more",
    ),
    _shown(
        "federation-refresh",
        "SPIFFE Federation 4.1",
        "endpoints are polled at the refresh hint, with jitter",
        f"{_INTAKE}::test_the_hint_is_followed_up_to_a_tenth_early_within_bounds",
        f"{_POLLING}::test_what_changes_at_the_endpoint_is_in_force_after_the_next_poll",
    ),
    _shown(
        "federation-https-web",
        "SPIFFE Federation 5.2.1",
        "endpoint profile https_web, served and consumed",
        f"{_ENDPOINT}::test_https_web_proves_a_host_name_to_the_machines_own_list",
        f"{_ENDPOINT}::test_https_web_believes_no_private_ca",
    ),
    _shown(
        "federation-https-spiffe",
        "SPIFFE Federation 5.2.2",
        "endpoint profile https_spiffe, served and consumed, judged by the latest bundle",
        f"{_ENDPOINT}::test_a_bundle_is_fetched_from_who_proves_the_spiffe_id",
        f"{_ENDPOINT}::test_who_does_not_prove_the_spiffe_id_is_not_believed",
        f"{_POLLING}::test_the_root_that_replaces_the_one_that_was_configured_judges_the_next_poll",
        f"{_POLLING}::test_an_endpoint_of_a_third_trust_domain_is_judged_by_that_ones_bundle",
    ),
    _shown(
        "federation-no-client-certificate",
        "SPIFFE Federation 5.2.2.3",
        "an endpoint asks for no client certificate",
        f"{_ENDPOINT}::test_no_client_certificate_is_asked_for",
    ),
    _shown(
        "federation-redirects",
        "SPIFFE Federation 5.2.2.4",
        "a redirect is followed only to where the same is proved",
        f"{_FETCHING}::test_a_redirect_is_followed_to_where_the_same_is_proved",
        f"{_FETCHING}::test_a_redirect_to_another_server_has_to_be_proved_again",
    ),
    _shown(
        "federation-ended",
        "SPIFFE Federation 6.3",
        "without a bundle no SVID of the trust domain is valid, for new connections and for those that live",
        f"{_HANDSHAKES}::test_a_trust_domain_that_went_away_meanwhile_is_called_that",
        f"{_MESH}::test_the_side_that_ends_the_trust_cuts_and_refuses_with_the_reason",
        f"{_MESH}::test_a_destination_that_ends_the_trust_cuts_and_refuses_too",
    ),
    # -- Workload API -----------------------------------------------------------------------------------
    _shown(
        "workload-socket",
        "SPIFFE Workload Endpoint 4",
        "programs find the API by SPIFFE_ENDPOINT_SOCKET",
        "tests/mesh/test_workload_api.py::test_a_program_gets_the_identity_of_its_pod_and_another_pod_gets_another",
    ),
    _shown(
        "workload-metadata",
        "SPIFFE Workload Endpoint 3",
        "a call without the metadata workload.spiffe.io: true is an invalid argument",
        f"{_WORKLOAD_API}::test_a_call_without_the_metadata_is_an_invalid_argument",
    ),
    _shown(
        "workload-full-state",
        "SPIFFE Workload API 5",
        "each message is the full state; what is absent was withdrawn",
        f"{_WORKLOAD_API}::test_a_program_gets_the_svid_of_its_pod_and_every_rotation_is_pushed",
        f"{_WORKLOAD_API}::test_bundles_of_federated_trust_domains_come_and_go",
    ),
    _shown(
        "workload-denied",
        "SPIFFE Workload API 5",
        "who has no identity (any more) is told to stop: permission denied",
        f"{_WORKLOAD_API}::test_a_process_of_no_pod_is_denied_everything",
        f"{_WORKLOAD_API}::test_a_revoked_identity_is_told_to_stop",
    ),
    # -- decided where the standards leave it open ------------------------------------------------------
    _rejects("decided-lower-case", "SPIFFE-ID 2.1", "an upper-case trust domain or scheme"),
    _rejects("decided-serial", "RFC 5280 4.1.2.2", "a serial number that is not positive"),
    _rejects("decided-authority-key", "RFC 5280 4.2.1.1", "an authority key identifier that does not match"),
    _rejects("decided-signing-path", "X509-SVID 3.2", "a signing certificate whose ID has a path"),
    _rejects("decided-signing-domain", "X509-SVID 3.2", "a signing certificate of another trust domain"),
    _both("decided-skew", "RFC 5280 4.1.2.5", "a clock skew of 60 s either way is tolerated, and no more"),
    _accepts("decided-strong-keys", "RFC 8446 4.2.3", "Ed25519 and P-384, also from federated domains"),
    _rejects("decided-weak-keys", "RFC 8446 4.2.3", "RSA under 2048 bits and P-224"),
    _rejects("decided-sha1", "RFC 9155", "SHA-1 signatures"),
)
