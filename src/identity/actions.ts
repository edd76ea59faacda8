/** The actions policies of this server decide about: the operations of its models, and those no operation is called after. */
import { Fault } from '../domain/faults.ts';
import { berthModel, ecrModel, iamModel, stsModel } from '../model/service-model.ts';

const MODELS = { ecr: ecrModel, iam: iamModel, sts: stsModel, berth: berthModel };

/** Actions that are permissions only (service authorization reference of ECR, IAM and STS), and those of `/events`. */
const BESIDE_OPERATIONS = [
  'ecr:BatchImportUpstreamImage',
  'ecr:ReplicateImage',
  'iam:PassRole',
  'sts:SetContext',
  'sts:SetSourceIdentity',
  'sts:TagSession',
  'berth:FollowEvents',
  'berth:ListDeadEvents',
  'berth:ReplayEvents',
];

const SPELLINGS: ReadonlyMap<string, string> = new Map(
  [
    ...Object.entries(MODELS).flatMap(([service, { operations }]) =>
      Object.keys(operations).map((name) => `${service}:${name}`),
    ),
    ...BESIDE_OPERATIONS,
  ].map((action) => [action.toLowerCase(), action]),
);

/**
 * The action in its own spelling; case does not matter, as in policies.
 *
 * @throws Fault ValidationException when nothing here asks for it, so that a slip of the pen is not taken for an answer
 */
export function readAction(text: string): string {
  const action = SPELLINGS.get(text.toLowerCase());
  if (action !== undefined) return action;
  throw new Fault('ValidationException', `${text} is no action of ecr, iam, sts or berth.`);
}
