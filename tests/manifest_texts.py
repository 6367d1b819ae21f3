"""Manifests as an API server writes them, and what becomes of a text."""

import pytest

from ca.manifests import ManifestError, ManifestObject, parse_manifests

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web-6d4b75cb6d-x8zvq
  namespace: shop
  uid: 0d2a7c8e-7c31-4b6e-9a65-d4c1e1b2f001
  creationTimestamp: "2024-05-01T12:00:00Z"
  generateName: web-6d4b75cb6d-
  resourceVersion: "812345"
  labels: {app: web, pod-template-hash: 6d4b75cb6d, ringfence.io/mesh: enabled}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: web-6d4b75cb6d, controller: true}
  managedFields:
  - manager: kubelet
    fieldsV1: {"f:metadata": {"f:labels": {".": {}}}}
spec:
  nodeName: node-1
  serviceAccountName: web
  restartPolicy: Always
  containers:
  - name: web
    image: nginx:1.27
    resources: {limits: {cpu: 500m, memory: 128Mi}}
    ports:
    - {name: http, containerPort: 8080, protocol: TCP}
    - {name: dns, containerPort: 53, protocol: UDP}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 10}
  - name: sidecar
    ports:
    - containerPort: 9090
status:
  phase: Running
  hostIP: 192.168.0.10
  podIP: 10.1.2.3
  podIPs:
  - ip: 10.1.2.3
  - ip: FD00:0:0::0003
  conditions:
  - {type: Initialized, status: "True"}
  - {type: Ready, status: "True", lastProbeTime: null}
"""

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  annotations: {ringfence.io/load-balancing: round-robin, other: anything}
spec:
  type: ClusterIP
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  sessionAffinity: None
  ports:
  - {name: http, port: 80, targetPort: http, protocol: TCP}
  - {name: admin, port: 9090}
  - {name: dns, port: 53, protocol: UDP}
"""


def only(text: str) -> ManifestObject:
    (found,) = parse_manifests(text, origin="test.yaml").objects
    return found


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(text, origin="test.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)
