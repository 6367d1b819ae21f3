"""Kubernetes manifests: who runs where, read by the CA and by the agents.

    errors      one line that says what is wrong, where, and what to do
    documents   YAML and JSON text to plain data (the only door to PyYAML)
    fields      reading plain data strictly, field by field
    objects     the kinds that Ringfence uses, as values
    kinds       each kind of object from its fields
    authorization  AuthorizationPolicy: its values; authorization_policy: its manifests
    external    places outside by name: ServiceEntry, ExternalName
    schema      judging data by the JSON Schemas that ship
    tcp_route   TCPRoute of the Gateway API, as far as a mesh uses it
    traffic     TrafficPolicy: its values; traffic_policy: its manifests
    parse       texts to objects
    enrolment   which pods belong to the mesh
    directory   a directory of manifest files, with its last good state

The fields that Ringfence uses are checked strictly; all others are ignored,
because real Kubernetes objects carry plenty of them.  docs/manifests.md is the
user's view.
"""

from ca.manifests.authorization import AuthorizationPolicy
from ca.manifests.directory import (
    DirectoryState,
    ManifestFile,
    directory_digest,
    read_directory,
)
from ca.manifests.enrolment import MESH_LABEL, enrolled
from ca.manifests.errors import ManifestError, ManifestProblem
from ca.manifests.external import ExternalEndpoint, ExternalPort, ExternalService
from ca.manifests.kinds import TRUST_DOMAIN_ANNOTATION
from ca.manifests.names import ObjectKey
from ca.manifests.objects import (
    CgroupPlace,
    ContainerPort,
    EndpointSlice,
    MachineWorkload,
    ManifestObject,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from ca.manifests.parse import ParsedFile, parse_manifests, parse_object
from ca.manifests.skipped import Skipped
from ca.manifests.tcp_route import TCPRoute
from ca.manifests.traffic import Traffic, TrafficPolicy

__all__ = [
    "MESH_LABEL",
    "TRUST_DOMAIN_ANNOTATION",
    "AuthorizationPolicy",
    "CgroupPlace",
    "ContainerPort",
    "DirectoryState",
    "EndpointSlice",
    "ExternalEndpoint",
    "ExternalPort",
    "ExternalService",
    "MachineWorkload",
    "ManifestError",
    "ManifestFile",
    "ManifestObject",
    "ManifestProblem",
    "Namespace",
    "Node",
    "ObjectKey",
    "ParsedFile",
    "PeerAuthentication",
    "Pod",
    "Service",
    "ServicePortSpec",
    "Skipped",
    "SliceEndpoint",
    "SlicePort",
    "TCPRoute",
    "Traffic",
    "TrafficPolicy",
    "directory_digest",
    "enrolled",
    "parse_manifests",
    "parse_object",
    "read_directory",
]
