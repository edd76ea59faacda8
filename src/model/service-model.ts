/**
 * The trimmed AWS service models as data: what `scripts/extract-models.ts` writes into `ecr.json`, `iam.json` and
 * `sts.json`, and Berth's own beside them in `berth.json`. Documentation text is left out; everything the interpreter acts on is kept.
 */
import berth from './berth.json' with { type: 'json' };
import ecr from './ecr.json' with { type: 'json' };
import iam from './iam.json' with { type: 'json' };
import sts from './sts.json' with { type: 'json' };

export interface ServiceModel {
  readonly source: {
    readonly package: string;
    readonly version: string;
    readonly license: string;
    readonly overlay?: string;
  };
  readonly metadata: {
    readonly apiVersion: string;
    readonly protocol: string;
    readonly jsonVersion?: string;
    readonly targetPrefix?: string;
    readonly xmlNamespace?: string;
  };
  readonly operations: Readonly<Record<string, ModelOperation>>;
  readonly shapes: Readonly<Record<string, ModelShape>>;
}

/** All operations are `POST /`; the extraction refuses a model where one is not. */
export interface ModelOperation {
  readonly input?: string;
  readonly output?: string;
  /** Element around the output in Query answers. */
  readonly resultWrapper?: string;
  readonly errors?: readonly string[];
  /** `none`: the operation takes unsigned requests. */
  readonly authtype?: 'none';
}

export interface ModelShape {
  readonly type:
    | 'structure'
    | 'list'
    | 'map'
    | 'string'
    | 'integer'
    | 'long'
    | 'double'
    | 'boolean'
    | 'timestamp'
    | 'blob';
  /** Member name → shape name, in the order of the model. */
  readonly members?: Readonly<Record<string, string>>;
  readonly required?: readonly string[];
  /** Shape name of list elements. */
  readonly member?: string;
  readonly key?: string;
  readonly value?: string;
  readonly min?: number;
  readonly max?: number;
  /** Java regular expression; the whole value must match. */
  readonly pattern?: string;
  readonly enum?: readonly string[];
  readonly sensitive?: boolean;
  readonly exception?: boolean;
  readonly fault?: boolean;
  /** Wire code and status of a Query error where they differ from the shape's name. */
  readonly error?: { readonly code: string; readonly httpStatusCode: number };
}

export const ecrModel = ecr as unknown as ServiceModel;
export const iamModel = iam as unknown as ServiceModel;
export const stsModel = sts as unknown as ServiceModel;
/** Operations beyond AWS, in AWS's form: JSON 1.1 signed for the service `berth`. */
export const berthModel = berth as unknown as ServiceModel;
