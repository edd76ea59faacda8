/** What `berth doctor` finds: one diagnosis each, with its reason and what to do. */

export type Severity = 'ok' | 'warning' | 'error';

export interface Finding {
  /** `area.subject`, stable: scripts match on it */
  readonly id: string;
  readonly severity: Severity;
  readonly what: string;
  readonly why?: string;
  /** what to do; lines to paste */
  readonly fix?: string;
}

export const ok = (id: string, what: string): Finding => ({ id, severity: 'ok', what });

export function warning(id: string, what: string, why: string, fix: string): Finding {
  return { id, severity: 'warning', what, why, fix };
}

export function failure(id: string, what: string, why: string, fix: string): Finding {
  return { id, severity: 'error', what, why, fix };
}

/** What is to be diagnosed: a registry, or an image in one. */
export interface Subject {
  /** in lower case, without port */
  readonly name: string;
  readonly port: number;
  /** as docker writes it: name, and the port if one was written */
  readonly host: string;
  /** undefined: not said, to be found out */
  readonly scheme: 'http' | 'https' | undefined;
  readonly repository: string | undefined;
  /** as in an image reference; `latest` unless told */
  readonly tag: string;
}

const REFERENCE =
  /^(?:(https?):\/\/)?([a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?(?:\/([^:@]*))?(?::([\w.-]+))?(?:@[\w:]+)?$/i;

/** Takes a registry's URL or host name or an image reference apart; undefined when it is none. */
export function readSubject(text: string): Subject | undefined {
  const [, scheme, name, port, path, tag] = REFERENCE.exec(text) ?? [];
  if (name === undefined) return undefined;
  const lower = name.toLowerCase();
  const said = scheme?.toLowerCase() as 'http' | 'https' | undefined;
  const repository = (path ?? '').replace(/\/+$/, '');
  return {
    name: lower.replace(/^\[|\]$/g, ''),
    port: port === undefined ? (said === 'http' ? 80 : 443) : Number(port),
    host: port === undefined ? lower : `${lower}:${port}`,
    scheme: said,
    repository: repository === '' ? undefined : repository,
    tag: tag ?? 'latest',
  };
}
