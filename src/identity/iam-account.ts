/** IAM operations on the account as a whole: alias, summary, credential report. */
import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import {
  countAccount,
  countNamed,
  findAccessKey,
  findAccountCreation,
  findAlias,
  findCredentialReport,
  findLoginProfile,
  findPasswordPolicy,
  listAccessKeys,
  listRootKeys,
  pageUsers,
} from '../store/store.ts';
import type { Store, UserRecord } from '../store/store.ts';
import { rootArn, userArn } from './arns.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import type { PasswordPolicy } from './passwords.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;
type Nothing = { [member: string]: never };

const accountCheck = (action: string) => ({ action: `iam:${action}`, resource: '*' });

/** How long a credential report is good (iam-sts.md §6.5): AWS makes a new one after four hours. */
const REPORT_MS = 4 * 3_600_000;
const DAY_MS = 86_400_000;

export function accountOperations(services: IamServices) {
  return {
    CreateAccountAlias: createAlias(services),
    DeleteAccountAlias: deleteAlias(services),
    ListAccountAliases: listAliases(services),
    GetAccountSummary: getSummary(services),
    GenerateCredentialReport: generateReport(services),
    GetCredentialReport: getReport(services),
  };
}

function createAlias({ store }: IamServices): Op<iam.CreateAccountAliasRequest> {
  return {
    access: () => [accountCheck('CreateAccountAlias')],
    async run({ AccountAlias: alias }, { caller: { account } }) {
      await store.transact('alias.set', { account, alias });
    },
  };
}

function deleteAlias({ store }: IamServices): Op<iam.DeleteAccountAliasRequest> {
  return {
    access: () => [accountCheck('DeleteAccountAlias')],
    async run({ AccountAlias: alias }, { caller: { account } }) {
      await store.transact('alias.delete', { account, alias });
    },
  };
}

function listAliases({
  store,
}: IamServices): Op<iam.ListAccountAliasesRequest, iam.ListAccountAliasesResponse> {
  return {
    access: () => [accountCheck('ListAccountAliases')],
    async run(_input, { caller: { account } }) {
      const alias = await findAlias(store.read, account);
      return { AccountAliases: alias === undefined ? [] : [alias], IsTruncated: false };
    },
  };
}

function getSummary({ store }: IamServices): Op<Nothing, iam.GetAccountSummaryResponse> {
  return {
    access: () => [accountCheck('GetAccountSummary')],
    async run(_input, { caller: { account } }) {
      const { read } = store;
      const { policies, policyVersions, providers, rootKeys } = await countAccount(read, account);
      return {
        SummaryMap: {
          Users: await countNamed(read, 'user', account),
          UsersQuota: LIMITS.usersPerAccountMax,
          Groups: await countNamed(read, 'group', account),
          GroupsQuota: LIMITS.groupsPerAccountMax,
          GroupsPerUserQuota: LIMITS.groupsPerUserMax,
          Roles: await countNamed(read, 'role', account),
          RolesQuota: LIMITS.rolesPerAccountMax,
          InstanceProfiles: await countNamed(read, 'instance-profile', account),
          InstanceProfilesQuota: LIMITS.instanceProfilesPerAccountMax,
          Policies: policies,
          PoliciesQuota: LIMITS.policiesPerAccountMax,
          PolicySizeQuota: LIMITS.managedPolicyCharactersMax,
          PolicyVersionsInUse: policyVersions,
          // AWS's figure; here each policy has its own quota only.
          PolicyVersionsInUseQuota: 10_000,
          VersionsPerPolicyQuota: LIMITS.policyVersionsMax,
          AttachedPoliciesPerUserQuota: LIMITS.attachedPoliciesPerUserMax,
          AttachedPoliciesPerGroupQuota: LIMITS.attachedPoliciesPerGroupMax,
          AttachedPoliciesPerRoleQuota: LIMITS.attachedPoliciesPerRoleMax,
          UserPolicySizeQuota: LIMITS.userInlineCharactersMax,
          GroupPolicySizeQuota: LIMITS.groupInlineCharactersMax,
          RolePolicySizeQuota: LIMITS.roleInlineCharactersMax,
          AssumeRolePolicySizeQuota: LIMITS.trustPolicyCharactersMax,
          AccessKeysPerUserQuota: LIMITS.accessKeysPerUserMax,
          Providers: providers,
          AccountAccessKeysPresent: rootKeys > 0 ? 1 : 0,
          AccountPasswordPresent: 0,
          AccountMFAEnabled: 0,
          AccountSigningCertificatesPresent: 0,
          MFADevices: 0,
          MFADevicesInUse: 0,
          ServerCertificates: 0,
          ServerCertificatesQuota: 0,
          SigningCertificatesPerUserQuota: 0,
          GlobalEndpointTokenVersion: 2,
        },
      };
    },
  };
}

const COLUMNS =
  'user,arn,user_creation_time,password_enabled,password_last_used,password_last_changed,password_next_rotation,' +
  'mfa_active,access_key_1_active,access_key_1_last_rotated,access_key_1_last_used_date,access_key_1_last_used_region,' +
  'access_key_1_last_used_service,access_key_2_active,access_key_2_last_rotated,access_key_2_last_used_date,' +
  'access_key_2_last_used_region,access_key_2_last_used_service,cert_1_active,cert_1_last_rotated,cert_2_active,' +
  'cert_2_last_rotated';

const timeOf = (at: number): string => `${new Date(at).toISOString().slice(0, 19)}+00:00`;

/** The five columns of one access key. */
async function keyColumns({ read }: Store, id: string | undefined): Promise<string[]> {
  const key = id === undefined ? undefined : await findAccessKey(read, id);
  if (key === undefined) return ['false', 'N/A', 'N/A', 'N/A', 'N/A'];
  const { lastUsed } = key;
  return [
    String(key.status === 'Active'),
    timeOf(key.createdAt),
    ...(lastUsed === undefined
      ? ['N/A', 'N/A', 'N/A']
      : [timeOf(lastUsed.at), lastUsed.region, lastUsed.service]),
  ];
}

const NO_CERTIFICATES = ['false', 'N/A', 'false', 'N/A'];

async function rootRow(store: Store, account: string): Promise<string[]> {
  const created = timeOf((await findAccountCreation(store.read, account)) ?? 0);
  const [first, second] = await listRootKeys(store.read, account);
  return [
    '<root_account>',
    rootArn(account),
    created,
    'not_supported',
    'not_supported',
    'not_supported',
    'not_supported',
    'false',
    ...(await keyColumns(store, first?.id)),
    ...(await keyColumns(store, second?.id)),
    ...NO_CERTIFICATES,
  ];
}

/** When the password has to be another one: told where the account's password policy makes passwords expire. */
function nextRotation(changedAt: number | undefined, maxAgeDays: number | undefined): string {
  if (changedAt === undefined || maxAgeDays === undefined) return 'N/A';
  return timeOf(changedAt + maxAgeDays * DAY_MS);
}

async function userRow(store: Store, user: UserRecord, maxAgeDays: number | undefined): Promise<string[]> {
  const profile = await findLoginProfile(store.read, user.id);
  const [first, second] = await listAccessKeys(store.read, user.id);
  return [
    user.name,
    userArn(user),
    timeOf(user.createdAt),
    String(profile !== undefined),
    profile === undefined
      ? 'N/A'
      : profile.lastUsedAt === undefined
        ? 'no_information'
        : timeOf(profile.lastUsedAt),
    profile === undefined ? 'N/A' : timeOf(profile.changedAt),
    nextRotation(profile?.changedAt, maxAgeDays),
    'false',
    ...(await keyColumns(store, first?.id)),
    ...(await keyColumns(store, second?.id)),
    ...NO_CERTIFICATES,
  ];
}

/** A field of CSV; user names and ARNs may hold commas, and a leading sign would be a formula to spreadsheets. */
function field(text: string): string {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const USERS_AT_ONCE = 200;

async function writeReport(store: Store, account: string): Promise<string> {
  const text = await findPasswordPolicy(store.read, account);
  const maxAgeDays = text === undefined ? undefined : (JSON.parse(text) as PasswordPolicy).maxAgeDays;
  const rows = [COLUMNS, (await rootRow(store, account)).map(field).join(',')];
  for (let last: string | undefined; ;) {
    const users = await pageUsers(store.read, account, { last, limit: USERS_AT_ONCE });
    for (const user of users) rows.push((await userRow(store, user, maxAgeDays)).map(field).join(','));
    last = users.at(-1)?.name;
    if (users.length < USERS_AT_ONCE) return rows.join('\n');
  }
}

/** Made at once, unless there is one that is still good. */
function generateReport(services: IamServices): Op<Nothing, iam.GenerateCredentialReportResponse> {
  const { store, identity } = services;
  return {
    access: () => [accountCheck('GenerateCredentialReport')],
    async run(_input, { caller: { account }, now }) {
      const report = await findCredentialReport(store.read, account);
      if (report !== undefined && now - report.generatedAt < REPORT_MS) return { State: 'COMPLETE' };
      await identity.flush();
      await store.transact('credentialReport.put', {
        account,
        content: await writeReport(store, account),
        now,
      });
      return { State: 'STARTED', Description: 'No report exists. Starting a new report generation task' };
    },
  };
}

function getReport({ store }: IamServices): Op<Nothing, iam.GetCredentialReportResponse> {
  return {
    access: () => [accountCheck('GetCredentialReport')],
    async run(_input, { caller: { account }, now }) {
      const report = await findCredentialReport(store.read, account);
      if (report === undefined) throw new Fault('ReportNotPresent', 'The report is not present.');
      if (now - report.generatedAt >= REPORT_MS) {
        throw new Fault('ReportExpired', 'The report has expired. Generate a new one.');
      }
      return {
        Content: Buffer.from(report.content),
        ReportFormat: 'text/csv',
        GeneratedTime: new Date(report.generatedAt),
      };
    },
  };
}
