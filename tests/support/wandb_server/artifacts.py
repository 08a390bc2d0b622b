"""Artifacts: what wandb-core does to upload one, and wandb.Api() to find and download it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .graphql import GraphQLError
from .state import Artifact, Run, State

Node = dict[str, Any]


class Artifacts:
    def __init__(self, state: State, url: Callable[[str], str], project_node: Callable[..., Node]):
        self.state, self.url, self.project_node = state, url, project_node

    def queries(self) -> Node:
        return {"artifact": lambda id: self.node(self.get(id)), "clientIDMapping": lambda clientID: None}

    def mutations(self) -> Node:
        return {"createArtifact": self.create, "createArtifactManifest": self.create_manifest,
                "updateArtifactManifest": self.update_manifest, "createArtifactFiles": self.create_files,
                "commitArtifact": self.commit}

    def project_fields(self) -> Node:
        return {"artifact": lambda name: None, "artifactCollection": self.collection,
                "artifactType": lambda name: {"__typename": "ArtifactType", "name": name,
                                              "artifactCollection": lambda name: None}}

    def collection(self, name: str) -> Node:
        versions = {f"v{a.version}": a for a in self.state.artifacts.values() if a.collection == name}

        def membership(aliasName: str) -> Node:
            return {"__typename": "ArtifactCollectionMembership",
                    "files": lambda **_: self.file_urls(versions[aliasName])}

        return {"__typename": "ArtifactSequence", "name": name, "artifactMembership": membership}

    def get(self, id: str) -> Artifact:
        if id not in self.state.artifacts:
            raise GraphQLError(f"no artifact {id}", 404)
        return self.state.artifacts[id]

    def of_run(self, run: Run) -> list[Node]:
        return [self.node(a) for a in self.state.artifacts.values() if a.run == run.name and a.state == "COMMITTED"]

    def create(self, artifactTypeName: str, digest: str, runName: str = "",
               artifactCollectionName: str | None = None, artifactCollectionNames: Sequence[str] = (),
               aliases: Sequence[Node] | None = None, metadata: str | None = None, **_: Any) -> Node:
        collection = artifactCollectionName or artifactCollectionNames[0]
        version = sum(a.collection == collection for a in self.state.artifacts.values())
        artifact = Artifact(f"artifact{self.state.number()}", runName, artifactTypeName, collection, version, digest,
                            metadata, [alias["alias"] for alias in aliases or []])
        self.state.artifacts[artifact.id] = artifact
        return {"artifact": self.node(artifact)}

    def create_manifest(self, artifactID: str, **_: Any) -> Node:
        artifact = self.get(artifactID)
        artifact.manifest = artifact.manifest or self.state.blob_key()
        return {"artifactManifest": self.manifest_node(artifact)}

    def update_manifest(self, artifactManifestID: str, **_: Any) -> Node:
        return {"artifactManifest": self.manifest_node(self.get(artifactManifestID.removeprefix("manifest:")))}

    def manifest_node(self, artifact: Artifact) -> Node:
        url = self.url(artifact.manifest)
        file = {"__typename": "File", "id": artifact.manifest, "uploadUrl": url, "uploadHeaders": [], "directUrl": url}
        return {"__typename": "ArtifactManifest", "id": f"manifest:{artifact.id}", "file": file}

    def create_files(self, artifactFiles: Sequence[Node], **_: Any) -> Node:
        edges = []
        for asked in artifactFiles:
            artifact = self.get(asked["artifactID"])
            key = artifact.files.setdefault(asked["name"], self.state.blob_key())
            edges.append({"node": {"storagePath": key, "uploadUrl": self.url(key), "uploadHeaders": [],
                                   "uploadMultipartUrls": None, "artifact": {"id": artifact.id}}})
        return {"files": {"edges": edges}}

    def commit(self, artifactID: str) -> Node:
        artifact = self.get(artifactID)
        artifact.state = "COMMITTED"
        return {"artifact": self.node(artifact)}

    def file_urls(self, artifact: Artifact, entries: Sequence[Node] | None = None, **_: Any) -> Node:
        names = [entry["name"] for entry in entries] if entries else list(artifact.files)
        nodes = [{"__typename": "File", "name": name, "directUrl": self.url(artifact.files[name])} for name in names]
        return {"pageInfo": {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None},
                "edges": [{"node": node} for node in nodes], "totalCount": len(nodes)}

    def node(self, artifact: Artifact) -> Node:
        run = self.state.runs.get(artifact.run)
        project = self.project_node(run.entity, run.project) if run else None
        collection = {"__typename": "ArtifactSequence", "id": f"sequence:{artifact.collection}",
                      "name": artifact.collection, "project": project, "latestArtifact": None}
        aliases = [{"__typename": "ArtifactAlias", "id": f"{artifact.id}:{alias}", "alias": alias,
                    "artifactCollection": collection} for alias in [*artifact.aliases, f"v{artifact.version}"]]
        return {
            "__typename": "Artifact", "id": artifact.id, "state": artifact.state, "artifactSequence": collection,
            "versionIndex": artifact.version, "artifactType": {"name": artifact.type}, "description": None,
            "metadata": artifact.metadata, "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
            "historyStep": None, "size": sum(len(self.state.blobs[key]) for key in artifact.files.values()),
            "digest": artifact.digest, "digestAlgorithm": "MANIFEST_MD5", "commitHash": artifact.digest,
            "fileCount": len(artifact.files), "createdAt": artifact.created, "updatedAt": artifact.created,
            "aliases": aliases, "currentManifest": self.manifest_node(artifact),
            "filesByManifestEntries": lambda **asked: self.file_urls(artifact, **asked),
            "files": lambda **_: self.file_urls(artifact),
        }
