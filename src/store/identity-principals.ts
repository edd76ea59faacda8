/** Principals that policies name: whether they exist, and their unique ids. */
import type { NamedPrincipal } from '../policy/policy.ts';
import { findRole, findRoleById } from './identity-roles.ts';
import { findUser, findUserById } from './identities.ts';
import type { Reader } from './transaction.ts';

/** Whether each of them exists; wildcards, services and federated providers always do. */
export async function principalsExist(read: Reader, principals: readonly NamedPrincipal[]): Promise<boolean> {
  for (const principal of principals) if (!(await principalExists(read, principal))) return false;
  return true;
}

export async function principalExists(read: Reader, principal: NamedPrincipal): Promise<boolean> {
  const { form, value, account = '' } = principal;
  switch (form) {
    case 'wildcard':
    case 'service':
    case 'federated':
      return true;
    case 'account':
    case 'federated-user':
      return await accountExists(read, account);
    case 'id':
      return (await findNamedById(read, value)) !== undefined;
    case 'user':
    case 'role':
      return (await findPrincipalId(read, principal)) !== undefined;
    case 'session': {
      const [, role = ''] = /:assumed-role\/([^/]+)\//.exec(value) ?? [];
      return (await findRole(read, account, role)) !== undefined;
    }
    default:
      return false;
  }
}

async function accountExists(read: Reader, account: string): Promise<boolean> {
  const row = await read.selectFrom('account').select('id').where('id', '=', account).executeTakeFirst();
  return row !== undefined;
}

/** The unique id of the user or role an ARN names, path included; undefined when there is none. */
export async function findPrincipalId(
  read: Reader,
  { form, value, account = '' }: NamedPrincipal,
): Promise<string | undefined> {
  if (form !== 'user' && form !== 'role') return undefined;
  const [, path, name = ''] = /:(?:user|role)(\/(?:.*\/)?)([^/]+)$/.exec(value) ?? [];
  const found = form === 'user' ? await findUser(read, account, name) : await findRole(read, account, name);
  return found?.path === path ? found?.id : undefined;
}

/** The user or role under a unique id. */
export async function findNamedById(
  read: Reader,
  id: string,
): Promise<
  | { readonly kind: 'user' | 'role'; readonly account: string; readonly path: string; readonly name: string }
  | undefined
> {
  const role = id.startsWith('AROA');
  const found = role ? await findRoleById(read, id) : await findUserById(read, id);
  return found && { kind: role ? 'role' : 'user', ...found };
}
