/**
 * AssumeRoleForPodIdentity, an operation of Berth's own after the one of EKS Auth: a role for a pod that shows the token of its
 * service account (EKS user guide, "EKS Pod Identity"). Berth has no clusters and no associations; what stands for them:
 *
 * - the cluster: an OpenID Connect provider of the account, tagged `eks-cluster-name`, with `pods.eks.amazonaws.com` among its
 *   client ids;
 * - the association: the caller names the role and must be allowed `iam:PassRole` on it, with `iam:PassedToService` and
 *   `iam:AssociatedResourceArn` (the cluster's ARN), as whoever makes an association on AWS must.
 *
 * INVARIANT: the session tags come from the verified token. A trust policy may rely on `aws:RequestTag/kubernetes-namespace`
 * and the others when the caller's `iam:PassRole` wants an `iam:AssociatedResourceArn`: AssumeServiceRole supplies none.
 */
import { createHash } from 'node:crypto';
import { Fault } from '../domain/faults.ts';
import type * as berth from '../model/berth-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { listTags } from '../store/store.ts';
import { readNamedArn } from './arns.ts';
import type { Principal } from './identity.ts';
import { openServiceSession } from './service-roles.ts';
import type { StsServices } from './sts-sessions.ts';
import { verifyIdentityToken, type Verified } from './sts-web-identity.ts';

const SERVICE = 'pods.eks.amazonaws.com';
const CLUSTER_TAG = 'eks-cluster-name';
const SESSION_NAME_MAX = 64;

export function assumeRoleForPodIdentity(
  services: StsServices,
): Operation<Principal, berth.AssumeRoleForPodIdentityRequest, berth.AssumeServiceRoleResponse> {
  return {
    access: ({ roleArn: resource, clusterName }, { caller, region }) => [
      {
        action: 'iam:PassRole',
        resource,
        keys: new Map([
          ['iam:passedtoservice', SERVICE],
          ['iam:associatedresourcearn', clusterArn(caller.account, region, clusterName)],
        ]),
      },
    ],
    async run({ clusterName, token, roleArn, durationSeconds }, context) {
      const { caller, region, now } = context;
      if (readNamedArn(roleArn)?.account !== caller.account) {
        throw new Fault('AccessDeniedException', 'Cross-account pass role is not allowed.');
      }
      const verified = await verifyIdentityToken(services, caller.account, token, now);
      if (verified.audience !== SERVICE) {
        throw new Fault('InvalidIdentityToken', 'Incorrect token audience');
      }
      const tags = await listTags(services.store.read, verified.provider.id);
      if (!tags.some(({ key, value }) => key === CLUSTER_TAG && value === clusterName)) {
        throw new Fault(
          'AccessDeniedException',
          `The token's issuer is not that of cluster ${clusterName}: its OpenID Connect provider has no tag ${CLUSTER_TAG}=${clusterName}.`,
        );
      }
      const pod = readPod(verified);
      const cluster = clusterArn(caller.account, region, clusterName);
      return openServiceSession(
        services,
        {
          roleArn,
          serviceName: SERVICE,
          sessionName: sessionNameOf(clusterName, pod.name, token),
          durationSeconds,
          sourceArn: cluster,
          tags: [
            { key: 'eks-cluster-arn', value: cluster },
            { key: CLUSTER_TAG, value: clusterName },
            { key: 'kubernetes-namespace', value: pod.namespace },
            { key: 'kubernetes-service-account', value: pod.serviceAccount },
            { key: 'kubernetes-pod-name', value: pod.name },
            { key: 'kubernetes-pod-uid', value: pod.uid },
          ],
        },
        context,
      );
    },
  };
}

function clusterArn(account: string, region: string, name: string): string {
  return `arn:aws:eks:${region}:${account}:cluster/${name}`;
}

interface Pod {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly name: string;
  readonly uid: string;
}

/** @throws Fault InvalidIdentityToken for what is not the token of a pod */
function readPod({ subject, claims }: Verified): Pod {
  const [, namespace, serviceAccount] = /^system:serviceaccount:([^:]+):([^:]+)$/.exec(subject) ?? [];
  const { 'kubernetes.io': bound } = claims;
  const { pod } = (typeof bound === 'object' && bound !== null ? bound : {}) as { readonly pod?: unknown };
  const { name, uid } = (typeof pod === 'object' && pod !== null ? pod : {}) as Record<string, unknown>;
  if (
    namespace === undefined ||
    serviceAccount === undefined ||
    typeof name !== 'string' ||
    typeof uid !== 'string'
  ) {
    throw new Fault('InvalidIdentityToken', 'The token is not bound to a pod.');
  }
  return { namespace, serviceAccount, name, uid };
}

/** `eks-{cluster}-{pod}-{part of the token's hash}`, as EKS has them with a random end. */
function sessionNameOf(cluster: string, pod: string, token: string): string {
  const end = createHash('sha256').update(token).digest('hex').slice(0, 10);
  const start = `eks-${cluster}-${pod}`.replace(/[^\w+=,.@-]/g, '-');
  return `${start.slice(0, SESSION_NAME_MAX - end.length - 1)}-${end}`;
}
